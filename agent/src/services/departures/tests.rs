use super::*;

fn departing(notice: Option<Notice>) -> (String, Departure, Option<oneshot::Sender<()>>) {
    match notice {
        Some(Notice::Departs { pod, stage, applied }) => (pod, stage, applied),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_end_of_a_pod_goes_on_when_the_dataplane_follows() {
    let (departures, mut notices) = channel();
    let told = tokio::spawn(async move { departures.tell("p".into(), Departure::Terminating).await });
    let (pod, stage, applied) = departing(notices.recv().await);
    assert_eq!((pod.as_str(), stage), ("p", Departure::Terminating));
    assert!(!told.is_finished());
    applied.expect("somebody waits").send(()).expect("still");
    assert_eq!(told.await.expect("no panic"), Ok(()));
}

#[tokio::test]
async fn the_end_of_a_pod_does_not_wait_for_a_dataplane_that_hangs() {
    let (departures, notices) = channel();
    let departures = Departures { limit: Duration::from_millis(5), ..departures };
    assert_eq!(departures.tell("p".into(), Departure::Gone).await, Err(Unheard::Late));
    // Nor for room in the queue.
    while departures.put(Notice::CaughtUp).is_ok() {}
    assert_eq!(departures.tell("q".into(), Departure::Gone).await, Err(Unheard::Full));
    drop(notices);
    assert_eq!(departures.tell("r".into(), Departure::Gone).await, Err(Unheard::Ended));
}

#[tokio::test]
async fn ends_that_nobody_heard_in_time_are_heard_later() {
    let (departures, mut notices) = channel();
    let departures = Departures { limit: Duration::ZERO, ..departures };
    // Both stages of the pods of a large node, all at once.
    let pods: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    for stage in [Departure::Terminating, Departure::Gone] {
        for pod in &pods {
            assert_eq!(departures.tell(pod.clone(), stage).await, Err(Unheard::Late));
        }
    }
    for stage in [Departure::Terminating, Departure::Gone] {
        for pod in &pods {
            let (heard, at, _gave_up) = departing(notices.recv().await);
            assert_eq!((&heard, at), (pod, stage));
        }
    }
}
