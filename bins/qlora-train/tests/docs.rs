//! README.md and docs/ say what the program does: generated tables are those it makes, and every command line that is
//! shown has only options that exist. `QLORA_UPDATE_DOCS=1` writes the tables anew.

use qlora_train::config::settings_markdown;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn qlora_train(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_qlora-train")).args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The part of a page between two markers, which is `expected`.
#[track_caller]
fn check_generated(page: &str, name: &str, expected: &str) {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let path = root().join(page);
    let text = fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{page} has no {begin}"));
    let (found, tail) = rest.split_once(&end).unwrap_or_else(|| panic!("{page} has no {end}"));
    if std::env::var_os("QLORA_UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{head}{begin}{expected}{end}{tail}")).unwrap();
        return;
    }
    assert_eq!(found, expected, "{page}: run this test with QLORA_UPDATE_DOCS=1");
}

#[test]
fn the_table_of_settings_is_the_programs() {
    check_generated("docs/settings.md", "settings", &settings_markdown());
}

/// The steps whose speed `tools/predict` predicts, as the program plans them.
#[test]
fn the_operations_of_predicted_steps_are_the_programs() {
    const MEMORY: [&str; 4] = ["23.5GiB", "31.3GiB", "44.4GiB", "79GiB"];
    // No 70B fits a card of 32 GB.
    let of_shape = [("llama-3-8b", &MEMORY[..]), ("llama-3-70b", &MEMORY[2..])];
    let steps = std::thread::scope(|scope| {
        let mut planners = Vec::new();
        for (shape, memories) in of_shape {
            for tokens in [2048, 4096, 16384] {
                planners.extend(memories.iter().map(|memory| scope.spawn(move || planned_step(shape, tokens, memory))));
            }
        }
        planners.into_iter().map(|planner| planner.join().unwrap()).collect::<Vec<String>>()
    });
    let (path, expected) = (root().join("tools/predict/steps.json"), format!("[\n{}\n]\n", steps.join(",\n")));
    if std::env::var_os("QLORA_UPDATE_DOCS").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap();
    assert!(found == expected, "tools/predict/steps.json: run this test with QLORA_UPDATE_DOCS=1");
}

/// A step with its operations, one a line.
fn planned_step(shape: &str, tokens: usize, memory: &str) -> String {
    let line = format!(
        "bench --shape {shape} --seq {tokens} --device cuda --device-memory {memory} --host-memory 256GiB --plan --json"
    );
    let (done, answer) = qlora_train(&line.split_whitespace().collect::<Vec<_>>());
    assert!(done, "{line}");
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let operations = answer["operations"].as_array().unwrap_or_else(|| panic!("{line}: {answer}"));
    let operations: Vec<String> = operations.iter().map(|operation| format!("   {operation}")).collect();
    format!(
        " {{\"shape\": \"{shape}\", \"tokens\": {tokens}, \"memory\": \"{memory}\", \"fits\": {}, \"activations\": {}, \
         \"operations\": [\n{}]}}",
        answer["fits"],
        answer["activations"],
        operations.join(",\n")
    )
}

/// A count with thousands separated.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}

#[test]
fn the_table_of_what_fits_is_planned_by_the_program() {
    let mut table = String::from("| memory of the GPU | Llama 3 8B | Llama 3 70B |\n|---|---|---|\n");
    for (card, memory) in [
        ("23.5 GiB (24 GB cards)", "23.5GiB"),
        ("44.4 GiB (48 GB cards with ECC)", "44.4GiB"),
        ("79 GiB (80 GB cards)", "79GiB"),
    ] {
        table += &format!("| {card} |");
        for shape in ["llama-3-8b", "llama-3-70b"] {
            let line = format!(
                "bench --shape {shape} --seq 2048 --device cuda --device-memory {memory} --host-memory 128GiB \
                 --gradient-checkpointing offload --plan --json"
            );
            let (done, answer) = qlora_train(&line.split_whitespace().collect::<Vec<_>>());
            assert!(done, "{line}");
            let plan: serde_json::Value = serde_json::from_str(&answer).unwrap();
            table += &match plan["max_length"].as_u64().unwrap() {
                0 => " does not fit |".to_owned(),
                tokens => format!(" {} |", thousands(tokens)),
            };
        }
        table += "\n";
    }
    check_generated("README.md", "fits", &table);
}

/// Markdown files that show commands.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> =
        fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.extend(["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"].map(|name| root().join(name)));
    pages
}

/// Every command line of the program in a block of code takes the options that it is shown with.
#[test]
fn commands_that_are_shown_have_only_options_that_exist() {
    let mut count = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let blocks = text.split("```").skip(1).step_by(2);
        let lines = blocks.flat_map(|block| block.lines()).map(|line| line.trim_start_matches("$ "));
        for line in lines {
            let mut words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
            if words.next().is_none_or(|program| program.rsplit('/').next() != Some("qlora-train")) {
                continue;
            }
            let command = words.next().unwrap_or_else(|| panic!("{}: `{line}` has no command", page.display()));
            let (known, help) = qlora_train(&[command, "--help"]);
            assert!(known, "{}: `{line}`: there is no command {command}", page.display());
            for option in words.filter(|word| word.starts_with("--")) {
                let exists = help.split_whitespace().any(|word| word.trim_end_matches([',', '[']) == option);
                assert!(exists, "{}: `{line}`: {command} has no option {option}", page.display());
            }
            count += 1;
        }
    }
    assert!(count >= 4, "only {count} commands are shown");
}
