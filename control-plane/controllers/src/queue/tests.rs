//! The queue's promises, on a paused clock.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Queue, QueueOptions, RETRY_MAX, backoff};

const SOON: Duration = Duration::from_millis(1);

fn queue(capacity: usize) -> Queue<&'static str> {
    Queue::new(QueueOptions { capacity, ..QueueOptions::named("test") })
}

async fn nothing(queue: &Queue<&'static str>) -> bool {
    timeout(SOON, queue.next()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn a_key_waits_once() {
    let queue = queue(10);
    queue.add("a");
    queue.add("b");
    queue.add("a");
    assert_eq!(queue.len(), 2);
    assert_eq!(queue.next().await, "a");
    assert_eq!(queue.next().await, "b");
    assert!(nothing(&queue).await);
}

#[tokio::test(start_paused = true)]
async fn a_key_in_work_comes_back_only_after_done() {
    let queue = queue(10);
    queue.add("a");
    assert_eq!(queue.next().await, "a");
    queue.add("a");
    queue.add("a");
    assert!(nothing(&queue).await);
    queue.done(&"a");
    assert_eq!(queue.next().await, "a");
    queue.done(&"a");
    assert!(nothing(&queue).await);
}

#[tokio::test(start_paused = true)]
async fn the_earlier_delay_holds() {
    let queue = queue(10);
    let start = Instant::now();
    queue.add_after("a", Duration::from_secs(60));
    queue.add_after("a", Duration::from_secs(5));
    queue.add_after("a", Duration::from_secs(30));
    assert_eq!(queue.next().await, "a");
    assert_eq!(start.elapsed().as_secs(), 5);
    queue.done(&"a");
    assert!(timeout(Duration::from_secs(120), queue.next()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn retries_double_until_forgotten() {
    let queue = queue(10);
    let delays: Vec<u128> = (0..4).map(|_| queue.retry("a").as_millis()).collect();
    assert_eq!(delays, [5, 10, 20, 40]);
    queue.forget(&"a");
    assert_eq!(queue.retry("a").as_millis(), 5);
}

#[test]
fn backoff_is_capped() {
    let base = Duration::from_millis(5);
    assert_eq!(backoff(base, RETRY_MAX, 17), Duration::from_millis(5 * 131_072));
    for failures in [18, 31, 32, 33, 1000] {
        assert_eq!(backoff(base, RETRY_MAX, failures), RETRY_MAX);
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_remembers_that_it_refused() {
    let queue = queue(2);
    queue.add("a");
    queue.add("b");
    queue.add("c");
    assert!(!queue.take_overflow(), "no room yet");
    assert_eq!(queue.next().await, "a");
    assert_eq!(queue.next().await, "b");
    assert!(queue.take_overflow());
    assert!(!queue.take_overflow(), "told once");
}

#[tokio::test(start_paused = true)]
async fn a_restarted_worker_gets_back_what_was_in_hand() {
    let queue = queue(10);
    queue.add("a");
    assert_eq!(queue.next().await, "a");
    queue.add("a");
    queue.restart();
    assert_eq!(queue.next().await, "a");
    queue.done(&"a");
    assert!(nothing(&queue).await);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_worker_is_woken() {
    let queue = std::sync::Arc::new(queue(10));
    let waiter = tokio::spawn({
        let queue = queue.clone();
        async move { queue.next().await }
    });
    tokio::task::yield_now().await;
    queue.add("a");
    assert_eq!(waiter.await.expect("the waiter ends"), "a");
}
