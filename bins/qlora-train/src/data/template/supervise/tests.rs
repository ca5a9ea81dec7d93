use super::*;

#[test]
fn results_come_back_and_panics_too() {
    assert_eq!(supervised(|| 7), Ok(7));
    assert_eq!(supervised(|| -> u8 { panic!("broken") }), Err(Stopped::Panic));
    assert_eq!(supervised(|| 8), Ok(8));
}

#[test]
fn a_deep_stack_is_there() {
    fn depth(n: u64) -> u64 {
        if n == 0 { 0 } else { 1 + std::hint::black_box(depth(std::hint::black_box(n - 1))) }
    }
    assert_eq!(supervised(|| depth(1_000_000)), Ok(1_000_000));
}

// Each limit alone, so that a slow machine does not meet another one first.
fn no_quota() -> Quota {
    let allowance = Box::leak(Box::new(Allowance::new()));
    Quota {
        bytes: i64::MAX,
        share: i64::MAX,
        allowance,
        piece: i64::MAX,
        asked: i64::MAX,
        requests: u64::MAX,
        stack: usize::MAX,
        stack_share: usize::MAX,
    }
}

#[test]
fn work_that_takes_no_end_is_given_up() {
    let started = Instant::now();
    let limits = Limits { seconds: 0.5, memory: no_quota() };
    assert_eq!(supervised_within(&limits, || while std::hint::black_box(true) {}), Err(Stopped::Time));
    assert!(started.elapsed() >= Duration::from_millis(500));
    assert_eq!(supervised(|| 9), Ok(9));
}

#[test]
fn work_that_takes_all_memory_is_given_up() {
    let grow = || {
        let mut all: Vec<Vec<u8>> = Vec::new();
        loop {
            all.push(vec![1; 1 << 20]);
        }
    };
    let limits = Limits { seconds: f64::INFINITY, memory: Quota { bytes: 64 << 20, ..no_quota() } };
    assert_eq!(supervised_within::<()>(&limits, grow), Err(Stopped::Memory));
    let ask = || {
        loop {
            std::hint::black_box(vec![1u8; 16]);
        }
    };
    let limits = Limits { seconds: f64::INFINITY, memory: Quota { requests: 1000, ..no_quota() } };
    assert_eq!(supervised_within::<()>(&limits, ask), Err(Stopped::Requests));
    let limits = Limits { seconds: f64::INFINITY, memory: Quota { asked: 16_000, ..no_quota() } };
    assert_eq!(supervised_within::<()>(&limits, ask), Err(Stopped::Asked));
    let lengthen = || {
        let mut text = String::new();
        loop {
            text.push(std::hint::black_box('a'));
        }
    };
    let limits = Limits { seconds: f64::INFINITY, memory: Quota { piece: 1 << 20, ..no_quota() } };
    assert_eq!(supervised_within::<()>(&limits, lengthen), Err(Stopped::Piece));
    assert_eq!(supervised(|| 9), Ok(9));
}

/// Threads that all need more than a share take turns, and one that does not end does not block the others.
#[test]
fn what_needs_much_memory_takes_turns() {
    const SHARE: i64 = 1 << 20;
    let memory = Quota { bytes: 8 * SHARE, share: SHARE, ..no_quota() };
    let limits = |seconds| Limits { seconds, memory };
    let large = || {
        let large = std::hint::black_box(vec![1u8; 4 << 20]);
        thread::sleep(Duration::from_millis(5));
        large.len()
    };
    thread::scope(|scope| {
        let run = || scope.spawn(move || (0..4).map(|_| supervised_within(&limits(60.0), large)).collect::<Vec<_>>());
        let threads: Vec<_> = (0..4).map(|_| run()).collect();
        for done in threads {
            assert!(done.join().unwrap().into_iter().all(|done| done.is_ok_and(|(len, _)| len == 4 << 20)));
        }
        let endless = || {
            let large = std::hint::black_box(vec![1u8; 4 << 20]);
            while std::hint::black_box(true) {}
            large.len()
        };
        let endless = scope.spawn(move || supervised_within(&limits(1.0), endless));
        thread::sleep(Duration::from_millis(200));
        let others: Vec<_> = (0..3).map(|_| scope.spawn(move || supervised_within(&limits(60.0), large))).collect();
        assert_eq!(endless.join().unwrap(), Err(Stopped::Time));
        for other in others {
            assert_eq!(other.join().unwrap(), Err(Stopped::Crowded));
        }
        let small = || std::hint::black_box(vec![1u8; 1 << 19]).len();
        assert_eq!(supervised_within(&limits(60.0), small).map(|(len, _)| len), Ok(1 << 19));
    });
}
