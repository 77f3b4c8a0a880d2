use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

#[test]
fn doubles_up_to_the_limit() {
    let mut state = None;
    let mut seen = Vec::new();
    let mut now = 0;
    for _ in 0..7 {
        let next = Backoff::next(state, at(now), at(now));
        seen.push(next.delay.as_secs());
        now += next.delay.as_secs();
        state = Some(next);
    }
    assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300]);
}

#[test]
fn starts_anew_after_ten_minutes() {
    let first = Backoff { delay: MAXIMUM, raised_at: at(0) };
    assert_eq!(Backoff::next(Some(first), at(600), at(600)).delay, MAXIMUM);
    assert_eq!(Backoff::next(Some(first), at(601), at(601)).delay, INITIAL);
    assert_eq!(first.waits_until(at(601), at(601)), None);
}

#[test]
fn waits_from_the_failure_on() {
    let state = Backoff { delay: INITIAL, raised_at: at(0) };
    assert_eq!(state.waits_until(at(5), at(6)), Some(at(15)));
    assert_eq!(state.waits_until(at(5), at(15)), None);
}

#[test]
fn prints_durations_as_go_does() {
    let table = [
        (SignedDuration::from_secs(10), "10s"),
        (SignedDuration::from_secs(80), "1m20s"),
        (SignedDuration::from_secs(300), "5m0s"),
        (SignedDuration::from_secs(3_600), "1h0m0s"),
        (SignedDuration::from_millis(1_234), "1.234s"),
        (SignedDuration::from_millis(250), "250ms"),
        (SignedDuration::from_micros(1_500), "1.5ms"),
        (SignedDuration::ZERO, "0s"),
    ];
    for (duration, text) in table {
        assert_eq!(go_duration(duration), text);
    }
}
