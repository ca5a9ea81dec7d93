//! The user's home directory in paths that no shell has expanded, such as those of settings files.

use std::path::{Path, PathBuf};

/// A path whose leading `~/` is replaced by the directory in HOME.
pub fn expand_home(path: &Path) -> PathBuf {
    in_home(path, std::env::var_os("HOME").as_deref().map(Path::new))
}

fn in_home(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        // Joining nothing would leave a slash at the end.
        (Ok(rest), Some(home)) if rest.as_os_str().is_empty() => home.to_owned(),
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_beginning_of_a_path_is_the_home_of_its_user() {
        let of = |path: &str| in_home(Path::new(path), Some(Path::new("/home/me")));
        for (path, expected) in [
            ("~/models/x", "/home/me/models/x"),
            ("~", "/home/me"),
            ("~other/x", "~other/x"),
            ("a/~/x", "a/~/x"),
            ("/~", "/~"),
            ("x", "x"),
        ] {
            assert_eq!(of(path).to_str(), Some(expected), "{path}");
        }
        assert_eq!(in_home(Path::new("~/x"), None), Path::new("~/x"));
    }
}
