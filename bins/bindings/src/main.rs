//! `bindings HEADER INCLUDE_DIRECTORY` prints the Rust declarations of a C header, not yet formatted.
//!
//! libclang is loaded at run time, from `LIBCLANG_PATH` where that is set.

use bindgen::{Builder, EnumVariation, Formatter, RustEdition, RustTarget};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [header, include] = arguments.as_slice() else {
        eprintln!("usage: bindings HEADER INCLUDE_DIRECTORY");
        return ExitCode::from(2);
    };
    match generate(header, include) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn generate(header: &str, include: &str) -> Result<String, String> {
    let target = RustTarget::stable(89, 0).map_err(|error| error.to_string())?;
    let builder = Builder::default()
        .header(header)
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
        .formatter(Formatter::None)
        // libclang comes without its own stddef.h and stdint.h.
        .clang_arg(format!("-I{include}"));
    Ok(builder.generate().map_err(|error| error.to_string())?.to_string())
}
