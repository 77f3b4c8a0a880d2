use super::*;

#[tokio::test]
async fn the_end_of_a_pod_goes_on_when_the_dataplane_follows() {
    let (departures, mut notices) = channel();
    let told = tokio::spawn(async move { departures.tell("p".into(), Departure::Terminating).await });
    let notice = notices.recv().await.expect("a notice");
    assert_eq!((notice.pod.as_str(), notice.stage), ("p", Departure::Terminating));
    assert!(!told.is_finished());
    notice.applied.send(()).expect("somebody waits");
    assert_eq!(told.await.expect("no panic"), Ok(()));
}

#[tokio::test]
async fn the_end_of_a_pod_does_not_wait_for_a_dataplane_that_hangs() {
    let (departures, notices) = channel();
    let departures = Departures { limit: Duration::from_millis(5), ..departures };
    assert_eq!(departures.tell("p".into(), Departure::Gone).await, Err(Unheard::Late));
    // Nor for room in the queue.
    while departures.notices.try_send(notice()).is_ok() {}
    assert_eq!(departures.tell("q".into(), Departure::Gone).await, Err(Unheard::Late));
    drop(notices);
    assert_eq!(departures.tell("r".into(), Departure::Gone).await, Err(Unheard::Ended));
}

fn notice() -> Notice {
    Notice { pod: "other".into(), stage: Departure::Gone, applied: oneshot::channel().0 }
}
