//! The rooms of the trainer: a folder of `src` imports only from those below it.

use std::fs;
use std::path::{Path, PathBuf};

/// The top one first.
const ROOMS: [&str; 23] = [
    "cli",
    "bench",
    "train",
    "export",
    "infer",
    "session",
    "model",
    "objective",
    "comm",
    "backend",
    "adapter",
    "base",
    "lora",
    "arch",
    "data",
    "config",
    "run_report",
    "lint",
    "hub",
    "report",
    "gguf",
    "files",
    "error",
];

fn floor(room: &str) -> Option<usize> {
    ROOMS.iter().position(|other| *other == room)
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Rooms that a source file names as `crate::ROOM`, outside of comments and of its own tests.
fn imports(text: &str) -> Vec<&str> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines
        .flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(rest))
        // A macro of the crate's root.
        .filter(|name| floor(name).is_some() || *name != "bail_usage")
        .collect()
}

/// Imports that lead up or to no room of the list, one sentence each.
fn wrong_imports(room: &str, file: &str, text: &str) -> Vec<String> {
    let Some(own) = floor(room) else { return vec![format!("{file}: {room} is no room of the list")] };
    let upward = |name: &&str| floor(name).is_none_or(|floor| floor < own);
    imports(text).into_iter().filter(upward).map(|name| format!("{file}: {room} imports {name}")).collect()
}

#[test]
fn a_room_imports_only_from_rooms_below_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for path in &files {
        let file = path.strip_prefix(&root).unwrap().to_str().unwrap();
        // Tests import what they like.
        if ["lib.rs", "main.rs"].contains(&file) || path.ends_with("tests.rs") {
            continue;
        }
        let room = file.split('/').next().unwrap().trim_end_matches(".rs");
        wrong.extend(wrong_imports(room, file, &fs::read_to_string(path).unwrap()));
    }
    assert!(files.len() > 100, "{} files", files.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_import_that_leads_up_is_found() {
    let text = "use crate::report::status;\n// use crate::cli::Cli;\nlet x = crate::session::plan::plan();\n";
    assert_eq!(wrong_imports("model", "model/a.rs", text), ["model/a.rs: model imports session"]);
    assert_eq!(wrong_imports("files", "files/a.rs", "use crate::report::Bars;"), ["files/a.rs: files imports report"]);
    assert_eq!(wrong_imports("files", "files/a.rs", "use crate::attic::x;"), ["files/a.rs: files imports attic"]);
    assert_eq!(wrong_imports("attic", "attic/a.rs", "").len(), 1);
    let tests = "#[cfg(test)]\nmod tests {\n    use crate::cli::Cli;\n}\n";
    assert!(wrong_imports("files", "files/a.rs", tests).is_empty());
    let elsewhere = "#[cfg(test)]\nmod tests;\n\nuse crate::report::Bars;\n";
    assert_eq!(wrong_imports("files", "files/a.rs", elsewhere), ["files/a.rs: files imports report"]);
}
