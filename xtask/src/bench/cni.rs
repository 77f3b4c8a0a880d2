//! Our CNI plugins beside the reference plugins, in one run: the time of a chain's ADD and DEL, of many ADDs at once, and of an
//! address among many leases. The release executables, each implementation on a host of its own in one private host.
//!
//! Calls alternate between both, so that what the machine does besides meets both. A network namespace is made once and used
//! again: its end is not what is measured. The floors are measured in the same run: executables that do nothing, and the
//! kernel's own creation and deletion of the links.

mod call;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use linux::netlink::{Netlink, VethOptions, VethPeer};
use linux::netns::{self, Netns};

use super::percentile::percentile;
use crate::{dist, process, test};
use call::{Chain, Implementation};

/// Chains that are attached and detached one after the other.
const ROUNDS: usize = 60;
/// ADDs at once, and how often.
const AT_ONCE: usize = 200;
const BURSTS: usize = 3;
/// Leases that are there before an address is asked for.
const LEASES: [u32; 4] = [0, 1_000, 16_000, 65_000];
const IPAM_ROUNDS: usize = 30;

#[derive(clap::Args)]
pub struct Options {
    /// The folders of plugins, ours first: set for the stage in the private host.
    #[arg(long, hide = true, num_args = 2)]
    inside: Vec<PathBuf>,
}

pub fn run(options: &Options) -> Result<()> {
    match options.inside.as_slice() {
        [ours, reference] => inside(ours, reference),
        _ => outside(),
    }
}

fn outside() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "bench cni makes network namespaces, which needs root");
    let ours = dist::run(&dist::Options::profile(false))?.join("cni");
    let mut stage = Command::new(test::private_host()?);
    stage.arg(std::env::current_exe().context("find own executable")?).args(["bench", "cni", "--inside"]);
    process::run(stage.arg(ours).arg(test::reference_plugins()?))
}

/// An implementation with its host: a network namespace, and namespaces of containers.
struct Side {
    implementation: Implementation,
    host: Netns,
    containers: Vec<Netns>,
}

impl Side {
    fn new(name: &'static str, plugins: &Path, containers: usize) -> Result<Self> {
        let at = |file: &str| Path::new("/run/netns").join(format!("{name}-{file}"));
        let host = netns::create(at("host"))?;
        let containers = (0..containers).map(|index| netns::create(at(&index.to_string())));
        let containers = containers.collect::<Result<_, _>>()?;
        Ok(Self { implementation: Implementation { name, plugins: plugins.to_owned() }, host, containers })
    }

    /// How long a chain's ADD takes, and its DEL.
    fn attach_and_detach(&self, chain: &Chain) -> Result<[Duration; 2]> {
        self.host.run(|| {
            let begin = Instant::now();
            let result = chain.add(&self.implementation, &self.containers[0], 0)?;
            let added = begin.elapsed();
            let begin = Instant::now();
            chain.del(&self.implementation, &self.containers[0], 0, &result)?;
            Ok([added, begin.elapsed()])
        })?
    }

    /// How long a DEL takes that finds nothing any more: runtimes call it twice.
    fn detach_again(&self, chain: &Chain) -> Result<Duration> {
        self.host.run(|| {
            let begin = Instant::now();
            chain.del(&self.implementation, &self.containers[0], 0, &serde_json::Value::Null)?;
            Ok(begin.elapsed())
        })?
    }

    /// How long the chain's executables take to do nothing.
    fn versions(&self, chain: &Chain) -> Result<Duration> {
        let begin = Instant::now();
        chain.versions(&self.implementation, &self.containers[0])?;
        Ok(begin.elapsed())
    }

    /// How long each of many ADDs takes that begin at once.
    fn burst(&self, chain: &Chain) -> Result<Vec<Duration>> {
        let start = Barrier::new(self.containers.len());
        let attach = |(index, container): (usize, &Netns)| {
            self.host.run(|| {
                start.wait();
                let begin = Instant::now();
                let result = chain.add(&self.implementation, container, index)?;
                Ok::<_, anyhow::Error>((begin.elapsed(), result))
            })?
        };
        let done: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                self.containers.iter().enumerate().map(|one| scope.spawn(move || attach(one))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<_>>()
        })?;
        let mut times = Vec::new();
        for (index, (taken, result)) in done.into_iter().enumerate() {
            self.host.run(|| chain.del(&self.implementation, &self.containers[index], index, &result))??;
            times.push(taken);
        }
        Ok(times)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        for netns in self.containers.iter().chain([&self.host]) {
            if let Err(error) = netns::remove(netns.path()) {
                eprintln!("{error}");
            }
        }
    }
}

fn inside(ours: &Path, reference: &Path) -> Result<()> {
    call::tools()?;
    {
        let sides = [Side::new("ours", ours, AT_ONCE)?, Side::new("reference", reference, AT_ONCE)?];
        one_by_one(&sides)?;
        at_once(&sides)?;
        addresses(&sides)?;
    }
    for folder in ["/run/netns", "/var/lib/cni", "/run/cni"] {
        let _ = fs::remove_dir_all(folder);
    }
    Ok(())
}

/// A table of one row for each thing that was measured of both.
fn print(title: &str, rows: &[(String, [Vec<Duration>; 2])]) {
    println!("\n{title}\n");
    println!("| what | ours p50 | p99 | reference p50 | p99 | reference / ours, p50 |");
    println!("|---|---|---|---|---|---|");
    for (what, [ours, reference]) in rows {
        let shown = |values: &[Duration], percent| {
            percentile(values, percent)
                .map_or_else(|| "not measured".to_owned(), |time| format!("{:.2} ms", milliseconds(time)))
        };
        let ratio = match (percentile(ours, 50), percentile(reference, 50)) {
            (Some(ours), Some(reference)) => format!("{:.1}", milliseconds(reference) / milliseconds(ours)),
            _ => "-".to_owned(),
        };
        let cells = [shown(ours, 50), shown(ours, 99), shown(reference, 50), shown(reference, 99), ratio];
        println!("| {what} | {} |", cells.join(" | "));
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn one_by_one(sides: &[Side; 2]) -> Result<()> {
    let mut rows = Vec::new();
    for chain in [Chain::bridge(), Chain::whole()] {
        let (mut added, mut deleted) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        // The first makes the bridge and the tables, which happens once a node.
        for round in 0..=ROUNDS {
            for (index, side) in sides.iter().enumerate() {
                let [add, del] = side.attach_and_detach(&chain)?;
                if round > 0 {
                    added[index].push(add);
                    deleted[index].push(del);
                }
            }
        }
        rows.push((format!("{}: ADD", chain.name), added));
        rows.push((format!("{}: DEL", chain.name), deleted));
    }
    let whole = Chain::whole();
    let (mut idle, mut created, mut deleted) = ([Vec::new(), Vec::new()], Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (index, side) in sides.iter().enumerate() {
            idle[index].push(side.versions(&whole)?);
        }
    }
    for _ in 0..ROUNDS {
        let [create, delete] = links_of_the_kernel(&sides[0])?;
        created.push(create);
        deleted.push(delete);
    }
    rows.push(("floor: VERSION of the chain's three plugins".to_owned(), idle));
    rows.push(("floor: the kernel's creation of one pair and one ifb".to_owned(), [created, Vec::new()]));
    rows.push(("floor: the kernel's deletion of one pair".to_owned(), [deleted, Vec::new()]));
    print(&format!("One after the other, {ROUNDS} rounds"), &rows);
    Ok(())
}

/// How long the kernel takes to create the links that the whole chain makes, and to delete the pair.
fn links_of_the_kernel(side: &Side) -> Result<[Duration; 2]> {
    use std::os::fd::AsFd;
    let container = &side.containers[0];
    netns::in_netns_async(side.host.as_fd(), || async {
        let host = Netlink::open()?;
        let peer = VethPeer { name: "eth0".to_owned(), mtu: None, mac: None, netns: Some(container.as_fd()) };
        let [pair, ifb] = ["floor0", "floor1"];
        let options = VethOptions {
            name: pair.to_owned(),
            mtu: None,
            mac: None,
            master: Some(host.link("cni0").await?.index),
            group: None,
            up: true,
            peer,
        };
        let begin = Instant::now();
        host.add_veth(&options).await?;
        host.add_ifb(ifb, 1500, 0).await?;
        let created = begin.elapsed();
        let link = host.link(pair).await?;
        let begin = Instant::now();
        host.del_link(link.index).await?;
        let deleted = begin.elapsed();
        host.del_link_named(ifb).await?;
        Ok([created, deleted])
    })?
}

fn at_once(sides: &[Side; 2]) -> Result<()> {
    let chain = Chain::bridge();
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..BURSTS {
        for (index, side) in sides.iter().enumerate() {
            times[index].extend(side.burst(&chain)?);
        }
    }
    print(&format!("{AT_ONCE} ADDs at once, {BURSTS} times"), &[(format!("{}: ADD", chain.name), times)]);
    Ok(())
}

fn addresses(sides: &[Side; 2]) -> Result<()> {
    let mut rows = Vec::new();
    for leases in LEASES {
        let chain = Chain::ipam("/run/cni/bench");
        let (mut times, mut again) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for (index, side) in sides.iter().enumerate() {
            lease(Path::new("/run/cni/bench/net"), leases)?;
            for round in 0..=IPAM_ROUNDS {
                let [add, _] = side.attach_and_detach(&chain)?;
                let nothing = side.detach_again(&chain)?;
                if round > 0 {
                    times[index].push(add);
                    again[index].push(nothing);
                }
            }
            fs::remove_dir_all("/run/cni/bench").context("remove the leases")?;
        }
        rows.push((format!("host-local: ADD, {leases} leases"), times));
        rows.push((format!("host-local: DEL again, {leases} leases"), again));
    }
    print("An address of a /16", &rows);
    Ok(())
}

/// Leases of other containers, as both implementations write them, from the first address on.
fn lease(folder: &Path, count: u32) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let first = u32::from(std::net::Ipv4Addr::new(10, 64, 0, 2));
    for index in 0..count {
        let address = std::net::Ipv4Addr::from(first + index);
        fs::write(folder.join(address.to_string()), format!("other-{index}\r\neth0"))?;
        if index + 1 == count {
            fs::write(folder.join("last_reserved_ip.0"), address.to_string())?;
        }
    }
    Ok(())
}
