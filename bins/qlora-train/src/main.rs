#![deny(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    qlora_train::cli::main()
}
