//! Memory limits of the control groups that this process is in: its own and all above it, of version 1 and 2.
//!
//! A limit counts what all processes of the group hold. Pages of files count too, but the kernel takes them back before
//! it kills.

use std::path::{Path, PathBuf};

/// Bytes that the tightest group of this process has left; none where no group has a limit.
pub(super) fn free_bytes() -> Option<u64> {
    free_bytes_below(Path::new("/"))
}

/// With `root` in place of "/".
fn free_bytes_below(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let (groups, mounts) = (read("proc/self/cgroup")?, read("proc/self/mountinfo")?);
    let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
    let own = groups.lines().filter_map(Membership::parse);
    let folders = own.flat_map(|own| folders(&own, &mounts));
    folders.filter_map(|(version, folder)| version.free(&root.join(folder))).min()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Above this a limit of version 1 is none: it says so with the largest multiple of a page.
const NO_LIMIT: u64 = 1 << 60;

impl Version {
    /// Bytes that the group of this folder has left, itself.
    fn free(self, folder: &Path) -> Option<u64> {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let (limit, used, prefix) = match self {
            Version::One => (number("memory.limit_in_bytes")?, number("memory.usage_in_bytes")?, "total_"),
            // "max" is no number. Above `high` a process is slowed down until it is of no use.
            Version::Two => {
                let limit = [number("memory.max"), number("memory.high")].into_iter().flatten().min()?;
                (limit, number("memory.current")?, "")
            }
        };
        if limit >= NO_LIMIT {
            return None;
        }
        let stat = read("memory.stat").unwrap_or_default();
        let of = |name: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(&format!("{prefix}{name} ")));
            line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        // Not those of shared memory, which are on the lists of anonymous pages.
        let files = of("inactive_file").saturating_add(of("active_file"));
        Some(limit.saturating_sub(used.saturating_sub(files)))
    }
}

/// A line of `/proc/self/cgroup` that is about memory
struct Membership {
    version: Version,
    path: PathBuf,
}

impl Membership {
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, ':');
        let (hierarchy, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let version = match (hierarchy, controllers) {
            ("0", "") => Version::Two,
            (_, controllers) if controllers.split(',').any(|name| name == "memory") => Version::One,
            _ => return None,
        };
        Some(Self { version, path: path.into() })
    }
}

/// A line of `/proc/self/mountinfo` that is a hierarchy of groups with memory
struct Mount {
    version: Version,
    /// The group that is seen at the mount point
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let before: Vec<&str> = before.split(' ').collect();
        let mut after = after.split(' ');
        let version = match (after.next()?, after.nth(1)?) {
            ("cgroup2", _) => Version::Two,
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => Version::One,
            _ => return None,
        };
        let path = |at: usize| before.get(at).map(|text| PathBuf::from(unescaped(text)));
        Some(Self { version, root: path(3)?, point: path(4)? })
    }
}

/// mountinfo writes blanks and backslashes in octal.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The folders, below "/", of a group and of those above it, as far as they are seen.
fn folders(own: &Membership, mounts: &[Mount]) -> Vec<(Version, PathBuf)> {
    let mut folders = Vec::new();
    for mount in mounts.iter().filter(|mount| mount.version == own.version) {
        let point = mount.point.strip_prefix("/").unwrap_or(&mount.point);
        // In a container the mount may show only a part, and the path be that of the host: the mount point is then the
        // innermost group that is seen.
        let below = own.path.strip_prefix(&mount.root).unwrap_or(Path::new(""));
        let seen = below.ancestors().filter(|below| !below.components().any(|part| part.as_os_str() == ".."));
        folders.extend(seen.map(|below| (own.version, point.join(below))));
    }
    folders
}

#[cfg(test)]
mod tests;
