//! `bindings write INCLUDE_DIRECTORY` writes the Rust declarations of the kernels' C interface, generated from its
//! header; `bindings check INCLUDE_DIRECTORY` fails if the committed ones differ. Both run in the repository's root.
//!
//! libclang is loaded at run time, from `LIBCLANG_PATH` where that is set.

use bindgen::{Builder, EnumVariation, RustEdition, RustTarget};
use std::process::ExitCode;

const HEADER: &str = "cuda/include/qlora_kernels.h";
const BINDINGS: &str = "src/sys.rs";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", include] => write(include),
        ["check", include] => check(include),
        _ => {
            eprintln!("usage: bindings write INCLUDE_DIRECTORY | bindings check INCLUDE_DIRECTORY");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(closing) => {
            println!("{closing}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(include: &str) -> Result<String, String> {
    let text = generate(include)?;
    if std::fs::read_to_string(BINDINGS).is_ok_and(|found| found == text) {
        return Ok(format!("{BINDINGS} is up to date"));
    }
    std::fs::write(BINDINGS, text).map_err(|error| format!("cannot write {BINDINGS}: {error}"))?;
    Ok(format!("{BINDINGS} written"))
}

fn check(include: &str) -> Result<String, String> {
    let committed = std::fs::read_to_string(BINDINGS).map_err(|error| format!("cannot read {BINDINGS}: {error}"))?;
    let generated = generate(include)?;
    if committed != generated {
        let alike = committed.lines().zip(generated.lines()).take_while(|(old, new)| old == new).count();
        return Err(format!(
            "{BINDINGS} is not what {HEADER} says, from line {} on: `cargo xtask bindings` writes it anew",
            alike + 1
        ));
    }
    Ok(format!("{BINDINGS}: {} lines, as generated from {HEADER}", generated.lines().count()))
}

fn generate(include: &str) -> Result<String, String> {
    let target = RustTarget::stable(89, 0).map_err(|error| error.to_string())?;
    let rustfmt = std::path::absolute("rustfmt.toml").map_err(|error| error.to_string())?;
    let builder = Builder::default()
        .header(HEADER)
        .disable_header_comment()
        .raw_line(r#"//! Generated from cuda/include/qlora_kernels.h by bindgen (options: --allowlist-item "[qQ][kK]_.*" --no-prepend-enum-name"#)
        .raw_line("//! --rust-edition 2024 --merge-extern-blocks, then rustfmt). Do not edit.")
        .raw_line("")
        // In two pieces: this file itself may not allow what it names.
        .raw_line(concat!("#![allow(non_camel_case_types, unsafe", "_code, missing_docs)]"))
        .allowlist_item("[qQ][kK]_.*")
        .default_enum_style(EnumVariation::Consts)
        .prepend_enum_name(false)
        .rust_target(target)
        .rust_edition(RustEdition::Edition2024)
        .merge_extern_blocks(true)
        .rustfmt_configuration_file(Some(rustfmt))
        // libclang comes without its own stddef.h and stdint.h.
        .clang_arg(format!("-I{include}"));
    Ok(builder.generate().map_err(|error| error.to_string())?.to_string())
}
