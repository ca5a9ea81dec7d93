use std::sync::mpsc;

use super::*;

/// A quota with an allowance of its own.
fn quota(bytes: i64, share: i64, requests: u64) -> Quota {
    let allowance = Box::leak(Box::new(Allowance::new()));
    let (stack, stack_share) = (usize::MAX, usize::MAX);
    Quota { bytes, share, allowance, piece: i64::MAX, asked: i64::MAX, requests, stack, stack_share }
}

/// The result of `work` in a thread of its own, or the limit that it exceeded.
fn run(quota: Quota, work: fn() -> usize) -> Result<usize, Beyond> {
    let verdict: &'static Verdict = Box::leak(Box::default());
    let (sender, done) = mpsc::sync_channel(1);
    thread::spawn(move || sender.send(metered(quota, verdict, work).0));
    loop {
        match (done.recv_timeout(Duration::from_millis(1)), verdict.get()) {
            (Ok(answer), _) => return Ok(answer),
            (_, Some(beyond)) => return Err(beyond),
            _ => {}
        }
    }
}

fn take(bytes: usize) -> usize {
    std::hint::black_box(vec![1u8; bytes]).len()
}

#[test]
fn work_is_stopped_where_it_asks_for_too_much() {
    for share in [0, 1 << 18, 1 << 20] {
        let quota = || quota(1 << 20, share, 1000);
        // Memory that is given back may be taken again, 900 times.
        assert_eq!(run(quota(), || (0..900).map(|_| take(1 << 19)).sum()), Ok(900 << 19));
        assert_eq!(run(quota(), || take((1 << 20) + 1)), Err(Beyond::Bytes));
        let several = || (0..4).map(|_| vec![0u8; 300 << 10]).collect::<Vec<_>>().len();
        assert_eq!(run(quota(), several), Err(Beyond::Bytes));
        assert_eq!(run(quota(), || (0..1001).map(|_| take(1)).sum()), Err(Beyond::Requests));
        let grow = || {
            let mut text = String::new();
            (0..2 << 20).for_each(|_| text.push('a'));
            text.len()
        };
        assert_eq!(run(quota(), grow), Err(Beyond::Bytes));
        assert_eq!(run(quota(), || vec![0u8; 2 << 20].len()), Err(Beyond::Bytes));
        // One piece, however it grows, and all pieces, whatever was given back.
        let piece = Quota { piece: 1 << 18, ..quota() };
        assert_eq!(run(piece, || take(1 << 18) + take(1 << 18)), Ok(1 << 19));
        assert_eq!(run(piece, || take((1 << 18) + 1)), Err(Beyond::Piece));
        assert_eq!(run(piece, grow), Err(Beyond::Piece));
        let asked = Quota { asked: 1 << 22, ..quota() };
        assert_eq!(run(asked, || (0..8).map(|_| take(1 << 19)).sum()), Ok(1 << 22));
        assert_eq!(run(asked, || (0..9).map(|_| take(1 << 19)).sum()), Err(Beyond::Asked));
    }
}

/// Work that asks for memory at each level is stopped long before its thread's stack ends.
#[test]
fn work_is_stopped_where_it_goes_too_deep() {
    fn deep(levels: usize) -> usize {
        if levels == 0 { 0 } else { take(1) + std::hint::black_box(deep(std::hint::black_box(levels - 1))) }
    }
    let quota = || Quota { stack: 256 << 10, ..quota(1 << 20, 1 << 20, u64::MAX) };
    assert_eq!(run(quota(), || deep(100)), Ok(100));
    assert_eq!(run(quota(), || deep(usize::MAX)), Err(Beyond::Stack));
}

/// Stack beyond a share is taken by one thread at a time, as memory is.
#[test]
fn work_that_goes_deep_waits_for_the_allowance() {
    fn deep(levels: usize) -> usize {
        if levels == 0 { 0 } else { take(1) + std::hint::black_box(deep(std::hint::black_box(levels - 1))) }
    }
    let quota = Quota { stack_share: 16 << 10, ..quota(i64::MAX, i64::MAX, u64::MAX) };
    let verdict: &'static Verdict = Box::leak(Box::default());
    assert_eq!(metered(quota, verdict, || deep(10)).0, 10);
    assert!(!verdict.is_deep());
    quota.allowance.set(TAKEN);
    let work = thread::spawn(move || metered(quota, verdict, || deep(2000)).0);
    while !verdict.waits() {
        assert!(!work.is_finished());
        thread::sleep(LOOK);
    }
    quota.allowance.set(FREE);
    assert_eq!(work.join().unwrap(), 2000);
    assert!(verdict.is_deep());
    assert_eq!(quota.allowance.0.load(Ordering::Relaxed), FREE);
}

/// A text that grows to its size in steps asks for that many bytes, as one that is made at once does.
#[test]
fn finished_work_says_what_it_used() {
    let verdict: &'static Verdict = Box::leak(Box::default());
    let grown = || {
        let mut grown = Vec::with_capacity(1 << 10);
        grown.extend_from_slice(&[1u8; 1 << 10]);
        grown.reserve_exact(1 << 10);
        std::hint::black_box(grown).len()
    };
    assert_eq!(metered(quota(1 << 20, 1 << 20, 10), verdict, grown).1, Used { requests: 2, asked: 2 << 10 });
    let twice = || take(1 << 10) + take(1 << 10);
    assert_eq!(metered(quota(1 << 20, 1 << 20, 10), verdict, twice).1, Used { requests: 2, asked: 2 << 10 });
}

#[test]
fn work_that_is_not_metered_takes_what_it_likes() {
    let verdict: &'static Verdict = Box::leak(Box::default());
    let used = Used { requests: 1, asked: 1 };
    assert_eq!(metered(quota(1 << 10, 1 << 10, 10), verdict, || take(1)), (1, used));
    assert_eq!((0..100).map(|_| take(1 << 20)).sum::<usize>(), 100 << 20);
    assert_eq!(verdict.get(), None);
}

/// Eight threads that each take ten times their share all come to an end, and never hold more together than their
/// shares and one allowance.
#[test]
fn what_is_beyond_a_share_is_taken_by_one_at_a_time() {
    const SHARE: usize = 1 << 20;
    const WHOLE: usize = 10 * SHARE;
    static NOW: AtomicI64 = AtomicI64::new(0);
    let quota = quota(2 * WHOLE as i64, SHARE as i64, 1000);
    let work = || {
        let small = vec![1u8; SHARE / 2];
        let large = vec![1u8; WHOLE];
        assert_eq!(NOW.fetch_add(1, Ordering::SeqCst), 0, "another thread has the allowance");
        thread::sleep(Duration::from_millis(2));
        NOW.fetch_sub(1, Ordering::SeqCst);
        small.len() + large.len()
    };
    thread::scope(|scope| {
        let verdict = || -> &'static Verdict { Box::leak(Box::default()) };
        let run = || scope.spawn(move || (0..5).map(|_| metered(quota, verdict(), work).0).sum::<usize>());
        let threads: Vec<_> = (0..8).map(|_| run()).collect();
        threads.into_iter().for_each(|done| assert_eq!(done.join().unwrap(), 5 * (SHARE / 2 + WHOLE)));
    });
    assert!(!quota.allowance.is_lost());
}

/// A thread that waits for a lost allowance sees that it is lost, and takes nothing once given up.
#[test]
fn an_allowance_is_lost_with_the_work_that_has_it() {
    let quota = quota(4 << 20, 1 << 20, 1000);
    assert_eq!(run(quota, || take(5 << 20)), Err(Beyond::Bytes));
    assert!(!quota.allowance.is_lost(), "it was stopped before it took the allowance");
    assert_eq!(run(quota, || take(2 << 20) + vec![vec![1u8; 3 << 20]; 2].len()), Err(Beyond::Bytes));
    assert!(quota.allowance.is_lost());
    let verdict: &'static Verdict = Box::leak(Box::default());
    let (sender, done) = mpsc::sync_channel(1);
    thread::spawn(move || sender.send(metered(quota, verdict, || take(2 << 20)).0));
    while !verdict.waits() {
        thread::sleep(LOOK);
    }
    verdict.give_up(quota.allowance);
    assert_eq!(done.recv_timeout(20 * LOOK), Err(mpsc::RecvTimeoutError::Timeout));
    assert_eq!(run(quota, || take(1 << 19)), Ok(1 << 19), "a share is there for everyone");
}

/// The heap's peak is known to within a few steps, however it was allocated.
#[test]
fn the_most_that_was_held_is_counted() {
    let slack = 64 * STEP as u64;
    let large = vec![1u8; 64 << 20];
    let many: Vec<Vec<u8>> = (0..64 << 10).map(|_| vec![1; 1000]).collect();
    // 1,000 bytes take 1,008 with the word beside them.
    let held = (64 << 20) + (64 << 10) * 1008;
    let most = heap_peak();
    assert!((held..held + (8 << 20)).contains(&(most + slack / 2)), "{most} of {held}");
    drop((large, many));
    assert_eq!(heap_peak(), most, "giving back is not taking");
    let mut grown: Vec<u8> = Vec::new();
    (0..160).for_each(|_| grown.extend_from_slice(&[1; 1 << 20]));
    let capacity = grown.capacity() as u64;
    assert!(heap_peak() + slack >= capacity && heap_peak() <= capacity + (32 << 20) + slack, "{capacity}");
}
