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
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A file system with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    fn free(files: &[(&str, &str)]) -> Option<u64> {
        free_bytes_below(root(files).path())
    }

    const MOUNT_2: (&str, &str) =
        ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
    const MOUNT_1: (&str, &str) = (
        "proc/self/mountinfo",
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup \
         cgroup rw,cpu\n",
    );

    #[test]
    fn the_tightest_of_nested_groups_counts() {
        let own = ("proc/self/cgroup", "0::/user.slice/job/step\n");
        let outer = [
            ("sys/fs/cgroup/user.slice/memory.max", "8589934592\n"),
            ("sys/fs/cgroup/user.slice/memory.current", "7516192768\n"),
            ("sys/fs/cgroup/user.slice/memory.stat", "anon 1\ninactive_file 1073741824\nactive_file 1073741824\n"),
        ];
        let job = [
            ("sys/fs/cgroup/user.slice/job/memory.max", "4294967296\n"),
            ("sys/fs/cgroup/user.slice/job/memory.current", "0\n"),
        ];
        let step = [
            ("sys/fs/cgroup/user.slice/job/step/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/job/step/memory.current", "0\n"),
        ];
        // 8 − 7 GiB, and 2 of those 7 are pages of files.
        assert_eq!(free(&[&[own, MOUNT_2], &outer[..], &job, &step].concat()), Some(3 * GIB));
        assert_eq!(free(&[&[own, MOUNT_2], &job[..], &step].concat()), Some(4 * GIB));
        assert_eq!(free(&[&[own, MOUNT_2], &step[..]].concat()), None);
        assert_eq!(free(&[own, MOUNT_2]), None);
        let high = [
            ("sys/fs/cgroup/user.slice/job/step/memory.high", "1073741824\n"),
            ("sys/fs/cgroup/user.slice/job/step/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/job/step/memory.current", "1073741000\n"),
        ];
        assert_eq!(free(&[&[own, MOUNT_2], &job[..], &high].concat()), Some(824));
    }

    #[test]
    fn version_1_is_read_where_memory_is_in_it() {
        let own = ("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/a/b\n3:cpuset:/c\n0::/\n");
        let of = |limit: &'static str, used: &'static str| {
            [
                ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", limit),
                ("sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", used),
            ]
        };
        let stat = (
            "sys/fs/cgroup/memory/a/b/memory.stat",
            "inactive_file 7\ntotal_inactive_file 100\ntotal_active_file 20\n",
        );
        assert_eq!(free(&[&[own, MOUNT_1, stat], &of("1000", "500")[..]].concat()), Some(620));
        assert_eq!(free(&[&[own, MOUNT_1], &of("9223372036854771712", "500")[..]].concat()), None);
        // More is used than allowed: the limit was lowered.
        assert_eq!(free(&[&[own, MOUNT_1], &of("1000", "5000")[..]].concat()), Some(0));
        let above = [
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "400"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "100"),
        ];
        assert_eq!(free(&[&[own, MOUNT_1, stat], &of("1000", "500")[..], &above].concat()), Some(300));
    }

    /// In a container the path is that of the host, or begins outside what is seen.
    #[test]
    fn the_mount_point_is_read_where_the_path_leads_elsewhere() {
        let mount = (
            "proc/self/mountinfo",
            "35 31 0:32 /docker/abc /sys/fs/cgroup\\040x/memory rw - cgroup cgroup rw,memory\n",
        );
        let limit = [
            ("sys/fs/cgroup x/memory/memory.limit_in_bytes", "1000"),
            ("sys/fs/cgroup x/memory/memory.usage_in_bytes", "100"),
            ("sys/fs/cgroup x/memory/sub/memory.limit_in_bytes", "500"),
            ("sys/fs/cgroup x/memory/sub/memory.usage_in_bytes", "50"),
        ];
        for (path, expected) in [("/docker/abc", 900), ("/docker/abc/sub", 450), ("/other", 900), ("/../../x", 900)] {
            let own = format!("4:memory:{path}\n");
            assert_eq!(
                free(&[&[("proc/self/cgroup", own.as_str()), mount], &limit[..]].concat()),
                Some(expected),
                "{path}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_no_limit() {
        assert_eq!(free(&[]), None);
        assert_eq!(free(&[("proc/self/cgroup", "0::/\n"), ("proc/self/mountinfo", "garbage\n- -\n")]), None);
        assert_eq!(free(&[("proc/self/cgroup", "garbage\n"), MOUNT_2]), None);
        let broken = [("sys/fs/cgroup/memory.max", "many\n"), ("sys/fs/cgroup/memory.current", "-1\n")];
        assert_eq!(free(&[&[("proc/self/cgroup", "0::/\n"), MOUNT_2], &broken[..]].concat()), None);
    }
}
