//! Watches in a flood of notifications, as when many pods start at once.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use linux::{
    netlink::{BridgeOptions, LinkChange, LinkEvent, LinkWatch, Netlink},
    netns::{self, Netns},
};

/// More links than notifications fit into a socket's receive buffer of the usual 208 KiB.
const LINKS: usize = 200;
const GROUP: u32 = 7;
const ROUNDS: usize = 40;
const LIMIT: Duration = Duration::from_secs(20);

/// A namespace with many links of one group, which one request can change all together.
struct Crowd {
    netns: Netns,
}

impl Crowd {
    fn new() -> Self {
        let inside = std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim() == "private-host");
        assert!(
            inside,
            "this test changes its host: run it with `cargo xtask test`, which gives it a private one"
        );
        let crowd = Self { netns: netns::create(Path::new("/run/netns/crowd")).expect("a namespace") };
        block_on(async {
            let netlink = crowd.netlink();
            for number in 0..LINKS {
                let bridge = BridgeOptions { name: format!("crowd{number}"), ..BridgeOptions::default() };
                netlink.add_bridge(&bridge).await.expect("a link");
            }
            for link in netlink.links().await.expect("the links") {
                if link.is_kind("bridge") {
                    let change = LinkChange { group: Some(GROUP), ..LinkChange::default() };
                    netlink.change_link(link.index, &change).await.expect("a group");
                }
            }
        });
        crowd
    }

    fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.netns).expect("a socket")
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        netns::remove(self.netns.path()).expect("its name is removed");
        let _ = std::fs::remove_dir("/run/netns");
    }
}

/// Changes every link of the group under one hold of the kernel's lock: index 0 stands for the group.
async fn change_all(netlink: &Netlink, mtu: u32) {
    let change = LinkChange { group: Some(GROUP), mtu: Some(mtu), ..LinkChange::default() };
    netlink.change_link(0, &change).await.expect("a change");
}

fn block_on<R>(work: impl Future<Output = R>) -> R {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(work)
}

#[test]
fn an_answer_is_not_lost_in_a_flood_of_notifications() {
    let crowd = Crowd::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            block_on(async {
                let netlink = crowd.netlink();
                for mtu in (1300..1400).cycle() {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    change_all(&netlink, mtu).await;
                }
            });
        });
        let ask = async {
            let index = crowd.netlink().link("crowd0").await?.index;
            for _ in 0..ROUNDS {
                let mut watch = LinkWatch::open_in(&crowd.netns)?;
                watch.wait_until(index, LIMIT, "find link", |_| true).await?;
            }
            Ok::<_, linux::netlink::Error>(())
        };
        let asked = block_on(async { tokio::time::timeout(LIMIT, ask).await });
        done.store(true, Ordering::Relaxed);
        asked.expect("an answer to each question").expect("no error");
    });
}

#[test]
fn a_loss_is_told_once_all_that_was_queued_is_read() {
    let crowd = Crowd::new();
    block_on(async {
        let mut watch = LinkWatch::open_in(&crowd.netns).expect("a watch");
        // Not read meanwhile.
        for mtu in 1300..1304 {
            change_all(&crowd.netlink(), mtu).await;
        }
        let mut queued = 0;
        while let LinkEvent::Changed(_) = next(&mut watch).await {
            queued += 1;
        }
        assert!((1..4 * LINKS).contains(&queued), "{queued}");
        // From here on nothing is dropped again.
        let index = watch.netlink().link("crowd0").await.expect("the link").index;
        watch.netlink().set_link_up(index).await.expect("it goes up");
        let up = next(&mut watch).await;
        assert!(matches!(&up, LinkEvent::Changed(link) if link.index == index && link.up), "{up:?}");
    });
}

async fn next(watch: &mut LinkWatch) -> LinkEvent {
    tokio::time::timeout(LIMIT, watch.next()).await.expect("in time").expect("an event")
}
