//! README.md and docs/ say what the program does: generated tables are those it makes, and every command line that is
//! shown has only options that exist. `QLORA_UPDATE_DOCS=1` writes the tables anew.

use qlora_train::config::settings_markdown;
use qlora_train::lint::lints_markdown;
use std::collections::BTreeMap;
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

#[test]
fn the_list_of_lints_is_the_programs() {
    check_generated("docs/lints.md", "lints", &lints_markdown());
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

/// A step with its operations, one a line, of a GPU that is nowhere: one that is here would be measured.
fn planned_step(shape: &str, tokens: usize, memory: &str) -> String {
    let line = format!(
        "bench --shape {shape} --seq {tokens} --device cuda:99 --device-memory {memory} --host-memory 256GiB \
         --weights resident --optimizer-states resident --token-tile off --plan --json"
    );
    let (done, answer) = qlora_train(&line.split_whitespace().collect::<Vec<_>>());
    assert!(done, "{line}");
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["predicted_step_seconds"].as_object().map(serde_json::Map::len), Some(6), "{line}");
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

/// The plan of training a shape on a GPU that is nowhere: one that is here would be measured.
fn plan_of(shape: &str, tokens: usize, device_memory: &str, host_memory: &str) -> serde_json::Value {
    let line = format!(
        "bench --shape {shape} --seq {tokens} --device cuda:99 --device-memory {device_memory} --host-memory {host_memory} \
         --plan --json"
    );
    let (_, answer) = qlora_train(&line.split_whitespace().collect::<Vec<_>>());
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{line}: {error}: {answer}"))
}

fn gib(bytes: &serde_json::Value) -> String {
    format!("{:.1} GiB", bytes.as_u64().unwrap() as f64 / f64::from(1 << 30))
}

/// Bytes of a plan's buffers on disk.
fn on_disk(plan: &serde_json::Value) -> u64 {
    let buffers = plan["buffers"].as_array().unwrap().iter();
    buffers.filter(|buffer| buffer["place"] == "disk").map(|buffer| buffer["bytes"].as_u64().unwrap()).sum()
}

/// The choices of a plan: "1 kept, 79 offloaded, weights of 40 in host memory, tiles of 4,096", and the place of
/// lm_head.
fn levers(plan: &serde_json::Value) -> String {
    let count = |value: &serde_json::Value| value.as_u64().unwrap_or(0) as usize;
    let mut said = Vec::new();
    for (name, word) in [("keep", "kept"), ("recompute", "recomputed"), ("offload", "offloaded"), ("disk", "on disk")] {
        let layers = count(&plan["activations"][name]);
        said.extend((layers > 0).then(|| format!("{layers} {word}")));
    }
    let (pinned, tile) = (count(&plan["pinned_layers"]), count(&plan["token_tile"]));
    said.extend((pinned > 0).then(|| format!("weights of {pinned} in host memory")));
    said.extend((plan["lm_head"] == "host").then(|| "lm_head in host memory".to_owned()));
    said.extend((plan["optimizer_states"] == "host").then(|| "AdamW states in host memory".to_owned()));
    let with_masters = plan["optimizer_states"] == "host_with_masters";
    said.extend(with_masters.then(|| "AdamW states and masters in host memory".to_owned()));
    said.extend((tile > 0).then(|| format!("tiles of {}", thousands(tile as u64))));
    said.join(", ")
}

fn tokens_per_second(plan: &serde_json::Value, tokens: usize, card: &str) -> String {
    let seconds = plan["predicted_step_seconds"][card].as_f64().unwrap();
    thousands((tokens as f64 / seconds) as u64)
}

#[test]
fn the_tables_of_what_fits_are_planned_by_the_program() {
    const HOST: &str = "256GiB";
    let cards = [
        ("llama-3-8b", "7.5GiB", "Llama 3 8B, 7.5 GiB (8 GB cards)", "4090"),
        ("llama-3-8b", "15.5GiB", "Llama 3 8B, 15.5 GiB (16 GB cards)", "4090"),
        ("llama-3-8b", "23.5GiB", "Llama 3 8B, 23.5 GiB (24 GB cards)", "4090"),
        ("llama-3-70b", "23.5GiB", "Llama 3 70B, 23.5 GiB (24 GB cards)", "4090"),
        ("llama-3-70b", "44.4GiB", "Llama 3 70B, 44.4 GiB (48 GB cards with ECC)", "L40S"),
        ("llama-3-70b", "79GiB", "Llama 3 70B, 79 GiB (80 GB cards)", "H100"),
    ];
    let mut fits = String::from(
        "| model and memory of the GPU | longest row | host memory for it | disk for it |\n|---|---|---|---|\n",
    );
    let mut plans = String::from(
        "| model and GPU | tokens | GPU | host | layers: activations, weights, tiles | tokens/s, predicted |\n",
    );
    plans += "|---|---|---|---|---|---|\n";
    for (shape, memory, name, card) in cards {
        let first = plan_of(shape, 2048, memory, HOST);
        let longest = first["max_length"].as_u64().unwrap() as usize;
        let mut at = first;
        let lengths: &[usize] = if shape == "llama-3-70b" { &[2048, 8192, 32_768, 65_536] } else { &[2048, 16_384] };
        for &tokens in lengths.iter().chain([&longest]) {
            if tokens > 2048 {
                at = plan_of(shape, tokens, memory, HOST);
            }
            if at["fits"] == false {
                assert!(tokens > longest, "{name}: {tokens} of {longest}");
                continue;
            }
            plans += &format!(
                "| {name} | {} | {} | {} | {} | {} on {card} |\n",
                thousands(tokens as u64),
                gib(&at["device"]["peak_bytes"]),
                gib(&at["host"]["peak_bytes"]),
                levers(&at),
                tokens_per_second(&at, tokens, card)
            );
        }
        let on_disk = match on_disk(&at) {
            0 => String::new(),
            bytes => gib(&bytes.into()),
        };
        fits +=
            &format!("| {name} | {} | {} | {on_disk} |\n", thousands(longest as u64), gib(&at["host"]["peak_bytes"]));
    }
    check_generated("README.md", "fits", &fits);
    check_generated("docs/memory.md", "plans", &plans);
}

#[test]
fn the_tables_of_long_rows_are_planned_by_the_program() {
    let plan = plan_of("llama-3-70b", 65_536, "44.4GiB", "256GiB");
    let mut long = String::from("| part | place | size |\n|---|---|---|\n");
    let buffers = plan["buffers"].as_array().unwrap();
    for buffer in buffers.iter().filter(|buffer| buffer["bytes"].as_u64().unwrap() >= 100 << 20) {
        let [name, place] = ["name", "place"].map(|key| buffer[key].as_str().unwrap());
        long += &format!("| {name} | {place} | {} |\n", gib(&buffer["bytes"]));
    }
    check_generated("docs/memory.md", "long", &long);
    let mut hosts = String::from("| GPU, model | 32 GiB | 64 GiB | 128 GiB | 256 GiB |\n|---|---|---|---|---|\n");
    for (shape, name, memory) in
        [("llama-3-70b", "23.5 GiB, Llama 3 70B", "23.5GiB"), ("llama-3-70b", "44.4 GiB, Llama 3 70B", "44.4GiB")]
    {
        hosts += &format!("| {name} |");
        for host in ["32GiB", "64GiB", "128GiB", "256GiB"] {
            // It does not depend on the row that is planned, and a short one is soon planned.
            hosts += &match plan_of(shape, 16, memory, host)["max_length"].as_u64().unwrap() {
                0 => " does not fit |".to_owned(),
                tokens => format!(" {} |", thousands(tokens)),
            };
        }
        hosts += "\n";
    }
    check_generated("docs/memory.md", "hosts", &hosts);
}

/// Time of a sum of gradients, and what it leaves of a step, by formula: bytes and steps are those of plans.
#[test]
fn the_tables_of_several_gpus_follow_from_plans() {
    const LINKS: [(&str, f64); 3] =
        [("NVLink 4, 450 GB/s", 450e9), ("PCIe 4 x16, 25 GB/s", 25e9), ("100 Gb Ethernet, 12.5 GB/s", 12.5e9)];
    const PROCESSES: [i32; 6] = [2, 4, 8, 16, 32, 64];
    let (mut models, mut sums) = (Vec::new(), Vec::new());
    for (shape, name) in [("llama-3-8b", "8B"), ("llama-3-70b", "70B")] {
        let line =
            format!("plan --model {shape} --gpu h100 --max-length 2048 --host-memory 256GiB --processes 2 --json");
        let (fits, answer) = qlora_train(&line.split_whitespace().collect::<Vec<_>>());
        assert!(fits, "{line}: {answer}");
        let plan: serde_json::Value = serde_json::from_str(&answer).unwrap();
        let step = plan["predicted_step_seconds"]["H100"].as_f64().unwrap();
        // Each of two sends half of them twice.
        let bytes = plan["processes"]["sum_bytes_per_step"].as_f64().unwrap();
        models.push(format!("| {name} | {:.1} million | {:.0} MB | {step:.2} s |\n", bytes / 4e6, bytes / 1e6));
        for (link, speed) in LINKS {
            let cells = PROCESSES.map(|processes| {
                let seconds = 2.0 * f64::from(processes - 1) / f64::from(processes) * bytes / speed;
                let digits = if seconds < 0.03 { 1 } else { 0 };
                format!(" {:.digits$} ms, {:.1} % |", 1e3 * seconds, 100.0 * step / (step + seconds))
            });
            sums.push(format!("| {name}, {link} |{}\n", cells.concat()));
        }
    }
    let head = "| Llama 3, LoRA with r 16 on all linear layers | weights of the adapter | their gradients in f32 | a step of \
                one row of 2,048 tokens on an H100, predicted |\n|---|---|---|---|\n";
    let numbers = PROCESSES.map(|processes| format!(" {processes} |")).concat();
    let second = format!("\n| model, link |{numbers}\n|---{}|\n", "|---".repeat(PROCESSES.len()));
    let expected = [head, &models.concat(), &second, &sums.concat()].concat();
    check_generated("docs/several-gpus.md", "scaling", &expected);
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
    let (mut count, mut helps) = (0, BTreeMap::new());
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
            // `export` has commands of its own.
            let of_export = words.clone().next().filter(|_| command == "export");
            let asked: Vec<&str> = [command].into_iter().chain(of_export).chain(["--help"]).collect();
            let (known, help) = helps.entry(asked.join(" ")).or_insert_with(|| qlora_train(&asked));
            assert!(*known, "{}: `{line}`: there is no command {command}", page.display());
            for option in words.filter(|word| word.starts_with("--")) {
                let exists = help.split_whitespace().any(|word| word.trim_end_matches([',', '[']) == option);
                assert!(exists, "{}: `{line}`: {command} has no option {option}", page.display());
            }
            count += 1;
        }
    }
    assert!(count >= 4, "only {count} commands are shown");
}
