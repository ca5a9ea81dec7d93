//! Libraries that a binary needs, and the versions of glibc's symbols among them.

use anyhow::{Context, Result, bail, ensure};
use goblin::elf::Elf;

/// Libraries that every system with glibc has, beside a binary of which versions decide: those that a `manylinux` wheel
/// may need.
const EVERYWHERE: [&str; 9] = [
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "librt.so.1",
    "libpthread.so.0",
    "libgcc_s.so.1",
    "libstdc++.so.6",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
];

/// The needs of a binary of the system on which it runs.
#[derive(Debug, PartialEq, Eq)]
pub struct Needs {
    pub libraries: Vec<String>,
    /// Newest version of glibc that one of its symbols is of
    pub glibc: (u32, u32),
    /// Architecture, as Python's platform tags name it
    pub architecture: &'static str,
}

impl Needs {
    pub fn of(bytes: &[u8]) -> Result<Self> {
        let elf = Elf::parse(bytes).context("the binary is no ELF file")?;
        let architecture = match elf.header.e_machine {
            goblin::elf::header::EM_X86_64 => "x86_64",
            goblin::elf::header::EM_AARCH64 => "aarch64",
            machine => bail!("the binary is for machine {machine}, expected x86-64 or aarch64"),
        };
        let mut glibc = (2, 17);
        for needed in elf.verneed.iter().flat_map(|section| section.iter()) {
            for version in needed.iter() {
                let name = elf.dynstrtab.get_at(version.vna_name).context("a version without a name")?;
                glibc = glibc.max(glibc_of(name)?.unwrap_or(glibc));
            }
        }
        let libraries = elf.libraries.iter().map(|&name| name.to_owned()).collect();
        Ok(Self { libraries, glibc, architecture })
    }

    /// Platform tag of a wheel with this binary. Refused: a library that a system may not have.
    pub fn platform_tag(&self) -> Result<String> {
        for library in &self.libraries {
            ensure!(
                EVERYWHERE.contains(&library.as_str()),
                "the binary needs {library}, which a system may not have: link it statically, or load it when it runs"
            );
        }
        Ok(format!("manylinux_{}_{}_{}", self.glibc.0, self.glibc.1, self.architecture))
    }
}

/// The version of glibc that a symbol's version names; none of another library.
fn glibc_of(version: &str) -> Result<Option<(u32, u32)>> {
    let Some(number) = version.strip_prefix("GLIBC_") else { return Ok(None) };
    if number == "ABI_DT_RELR" {
        return Ok(Some((2, 36)));
    }
    let mut parts = number.split('.').map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok(Some((major, minor))),
        _ => bail!("the binary needs {version} of glibc, which is no number of a version"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_glibc_are_compared_as_numbers() {
        assert_eq!(glibc_of("GLIBC_2.34").unwrap(), Some((2, 34)));
        assert_eq!(glibc_of("GLIBC_2.2.5").unwrap(), Some((2, 2)));
        assert_eq!(glibc_of("GLIBC_ABI_DT_RELR").unwrap(), Some((2, 36)));
        assert_eq!(glibc_of("GCC_4.2.0").unwrap(), None);
        assert!(glibc_of("GLIBC_PRIVATE").is_err());
    }

    #[test]
    fn this_test_needs_what_a_rust_program_does() {
        let needs = Needs::of(&std::fs::read(std::env::current_exe().unwrap()).unwrap()).unwrap();
        assert!(needs.libraries.contains(&"libc.so.6".to_owned()), "{needs:?}");
        assert!(needs.platform_tag().unwrap().ends_with(std::env::consts::ARCH), "{needs:?}");
        assert!(Needs::of(b"#!/bin/sh").is_err());
    }

    #[test]
    fn a_library_that_may_be_missing_is_refused() {
        let needs =
            |library: &str| Needs { libraries: vec![library.to_owned()], glibc: (2, 34), architecture: "x86_64" };
        assert_eq!(needs("libm.so.6").platform_tag().unwrap(), "manylinux_2_34_x86_64");
        assert!(needs("libssl.so.3").platform_tag().unwrap_err().to_string().contains("libssl.so.3"));
    }
}
