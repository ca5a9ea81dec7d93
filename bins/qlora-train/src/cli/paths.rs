//! Paths on the command line.

use crate::files::home::expand_home;
use clap::builder::{PathBufValueParser, TypedValueParser};
use std::path::PathBuf;

/// A path whose leading `~/` is the home directory: shells leave that of `--output-dir=~/x` as it is.
pub(super) fn path_from_home() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| expand_home(&path))
}
