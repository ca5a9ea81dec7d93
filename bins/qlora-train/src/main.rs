#![deny(unsafe_code)]

use git_version::git_version;
use std::process::ExitCode;

/// Commit that this was built from: the value of QLORA_COMMIT at build time, or the commit of the git checkout, or
/// empty. Named here and not in the library, so that a new commit links the program again and compiles nothing else.
const COMMIT: &str = match option_env!("QLORA_COMMIT") {
    Some(commit) => commit,
    None => git_version!(args = ["--always", "--abbrev=12", "--dirty=-modified", "--exclude=*"], fallback = ""),
};

fn main() -> ExitCode {
    qlora_train::cli::main(COMMIT)
}
