use super::*;

#[test]
fn processors_that_a_launcher_leaves_idle_are_told() {
    let counts = ["0\n", "0-7\n", "0-3,8,10-11\n"].map(count_of);
    assert_eq!(counts, [Some(1), Some(8), Some(7)]);
    for list in ["", "\n", "a", "3-1", "0-", "-2", "0,,1", "0-18446744073709551615"] {
        assert_eq!(count_of(list), None, "{list:?}");
    }
    // One of two that are bound to a core, or to half a machine; one alone.
    assert!(is_idle(1, 2, 64) && is_idle(1, 2, 4) && is_idle(8, 2, 32));
    assert!(!is_idle(1, 2, 2) && !is_idle(32, 2, 64) && !is_idle(1, 1, 64) && !is_idle(usize::MAX, 2, 64));
    // If all may use the same, nothing was bound.
    assert_eq!((bound(2, 2), bound(1, 1)), (None, None));
}

#[test]
fn processes_of_a_machine_share_its_memory_whatever_limit_each_was_given() {
    for here in 1..5 {
        for limit in [None, Some(0), Some(1000), Some(5000), Some(1 << 40)] {
            let part = part(4000, limit, here);
            assert!(part * here as u64 <= 4000 && part <= limit.unwrap_or(u64::MAX), "{here} {limit:?}: {part}");
            assert!(part == limit.unwrap_or(u64::MAX).min(4000 / here as u64), "{here} {limit:?}: {part}");
        }
    }
    // A part of none is one of all.
    assert_eq!(part(4000, None, 0), 4000);
}

#[test]
fn anonymous_memory_is_read_from_the_status_of_the_process() {
    let status = "VmHWM:\t  999 kB\nRssAnon:\t    1234 kB\nRssFile:\t  77 kB\n";
    assert_eq!(anonymous_in(status), Some(1234 << 10));
    assert_eq!((anonymous_in(""), anonymous_in("RssAnon:\tmany kB\n")), (None, None));
    let before = own_bytes();
    let held = std::hint::black_box(vec![1u8; 64 << 20]);
    let after = own_bytes();
    assert!(before > 0 && after >= before + (60 << 20), "{before} {after} {}", held.len());
}
