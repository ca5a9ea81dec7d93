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
    let stat =
        ("sys/fs/cgroup/memory/a/b/memory.stat", "inactive_file 7\ntotal_inactive_file 100\ntotal_active_file 20\n");
    assert_eq!(free(&[&[own, MOUNT_1, stat], &of("1000", "500")[..]].concat()), Some(620));
    assert_eq!(free(&[&[own, MOUNT_1], &of("9223372036854771712", "500")[..]].concat()), None);
    // More is used than allowed: the limit was lowered.
    assert_eq!(free(&[&[own, MOUNT_1], &of("1000", "5000")[..]].concat()), Some(0));
    let above =
        [("sys/fs/cgroup/memory/memory.limit_in_bytes", "400"), ("sys/fs/cgroup/memory/memory.usage_in_bytes", "100")];
    assert_eq!(free(&[&[own, MOUNT_1, stat], &of("1000", "500")[..], &above].concat()), Some(300));
}

/// In a container the path is that of the host, or begins outside what is seen.
#[test]
fn the_mount_point_is_read_where_the_path_leads_elsewhere() {
    let mount =
        ("proc/self/mountinfo", "35 31 0:32 /docker/abc /sys/fs/cgroup\\040x/memory rw - cgroup cgroup rw,memory\n");
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
