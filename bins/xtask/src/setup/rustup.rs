//! Parts of Rust that rustup fetches, for steps that need more than the toolchain that runs them.

use std::process::Command;

/// Calls rustup with these arguments. An error is the reason, for the summary: there is no rustup, or no network.
pub fn fetch(arguments: &[&str]) -> Result<(), String> {
    call("rustup", arguments)
}

fn call(program: &str, arguments: &[&str]) -> Result<(), String> {
    let shown = format!("`{program} {}`", arguments.join(" "));
    match Command::new(program).args(arguments).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{shown} failed ({status}), perhaps for want of a network")),
        Err(error) => Err(format!("{shown} cannot be run ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use super::call;

    #[test]
    fn a_fetch_that_fails_says_why() {
        assert_eq!(call("true", &["toolchain"]), Ok(()));
        let failed = call("false", &["target", "add", "x"]).unwrap_err();
        assert!(failed.starts_with("`false target add x` failed (exit status: 1)"), "{failed}");
        let absent = call("no-such-program-here", &["target"]).unwrap_err();
        assert!(absent.starts_with("`no-such-program-here target` cannot be run"), "{absent}");
    }
}
