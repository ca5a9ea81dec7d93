//! Paths on the command line.

use crate::files::home::expand_home;
use clap::builder::{PathBufValueParser, StringValueParser, TypedValueParser};
use std::path::{Path, PathBuf};

/// A path whose leading `~/` is the home directory: shells leave that of `--output-dir=~/x` as it is.
pub fn path_from_home() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| expand_home(&path))
}

/// [`path_from_home`] where a name may stand in place of a path. A home that is no text is left to whoever opens it.
pub fn name_or_path_from_home() -> impl TypedValueParser<Value = String> {
    StringValueParser::new().map(|name| match expand_home(Path::new(&name)).into_os_string().into_string() {
        Ok(path) => path,
        Err(_) => name,
    })
}
