use super::*;

#[test]
fn the_time_left_counts_what_this_process_did() {
    let seconds = Duration::from_secs;
    assert_eq!(time_left(seconds(10), 0, 100, 300), seconds(20));
    assert_eq!(time_left(seconds(10), 300, 400, 1000), seconds(60));
    assert_eq!(time_left(seconds(10), 0, 300, 300), seconds(0));
}

/// Right after resuming, the speed is unknown; a step later it is the speed of this process.
#[test]
fn the_bar_of_a_resumed_run_tells_the_time_that_is_left() {
    let mut bars = Bars::resumed("training", 1000, 900);
    assert_eq!((bars.bar.position(), bars.bar.eta()), (900, Duration::ZERO));
    std::thread::sleep(Duration::from_millis(200));
    let before = bars.start.elapsed();
    bars.set(910, String::new());
    let left = bars.bar.eta();
    let after = bars.start.elapsed();
    // 90 steps at the speed of 10, and not at that of 910.
    let (least, most) = (before.mul_f64(8.5), after.mul_f64(12.0));
    assert!((least..most).contains(&left), "{left:?} of {least:?} to {most:?}");
}

#[test]
fn the_speed_of_reading_is_in_gigabytes() {
    assert_eq!(speed(7.5e9, Duration::from_secs(3)), "2.50 GB/s");
    assert!(speed(0.0, Duration::ZERO).starts_with("0.00 "));
}

#[test]
fn durations_are_short() {
    let of = |s| duration(Duration::from_secs(s));
    assert_eq!([of(0), of(59), of(60), of(187), of(7500)], ["0s", "59s", "1m00s", "3m07s", "2h05m"]);
}
