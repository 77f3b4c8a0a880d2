//! A build of an earlier layout, whose maps of flows have half the room of ours and whose programs work on these.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::EbpfLoader;
use aya::maps::MapData;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::SchedClassifierLink;
use aya::programs::{ProgramFd, SchedClassifier, loaded_programs};
use dataplane_abi::{LAYOUT_VERSION, capacity, map};
use linux::netlink::{Direction, FilterPlace, Netlink};
use linux::netns::Netns;

/// All flows from outside, and those of what pods send there, are in them.
const OTHER_ROOM: [&str; 2] = [map::NAT, map::INBOUND];

/// Where maps wait until they are the earlier layout's.
fn aside(name: &str) -> PathBuf {
    Path::new("/sys/fs/bpf").join(format!("earlier_{name}"))
}

/// The folder of the earlier layout, by ours.
pub fn folder(pins: &Path) -> PathBuf {
    pins.with_file_name(format!("v{}", LAYOUT_VERSION - 1))
}

/// Makes the uplinks run the earlier build's programs. No flow is under way yet.
pub fn attach(pins: &Path, uplinks: &[&str]) {
    let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dataplane.o"));
    let mut loader = EbpfLoader::new();
    for entry in std::fs::read_dir(pins).expect("read the pins") {
        let name = entry.expect("a pin").file_name().into_string().expect("a name");
        if let Some(other) = OTHER_ROOM.into_iter().find(|other| *other == name) {
            loader.map_pin_path(other, aside(other)).map_max_entries(other, capacity::NAT as u32 / 2);
        } else if name.starts_with("ORLOP_") {
            let path = pins.join(&name);
            loader.map_pin_path(Box::leak(name.into_boxed_str()), path);
        }
    }
    let mut programs = loader.load(object).expect("load the object");
    for name in ["orlop_ingress", "orlop_egress"] {
        let program: &mut SchedClassifier =
            programs.program_mut(name).expect("a program").try_into().expect("a classifier");
        program.load().expect("load a program");
        for interface in uplinks {
            let pin = pins.join(format!("link_{name}_{interface}"));
            if !pin.exists() {
                replace_filter(name, pins, program);
                continue;
            }
            let link = FdLink::from(PinnedLink::from_pin(pin).expect("a pinned link"));
            let link = SchedClassifierLink::try_from(link).expect("a link of a classifier");
            program.attach_to_link(link).expect("replace a program");
        }
    }
}

/// On kernels without TCX.
fn replace_filter(name: &str, pins: &Path, program: &SchedClassifier) {
    let ours = program.fd().expect("it is loaded");
    replace_filters(|found, program| {
        let program = if found == name { ours.try_clone().expect("a descriptor") } else { program };
        (format!("{found}:{}", pins.display()), program)
    });
}

/// Replaces the filters of all links by what `change` gives for each one's program, by its name: a filter's name, and a program.
pub fn replace_filters(change: impl Fn(&str, ProgramFd) -> (String, ProgramFd) + Sync) {
    let here = Netns::current().expect("a namespace");
    let work = || async {
        let netlink = Netlink::open().expect("open netlink");
        for (link, _) in netlink.classifiers().await.expect("list qdiscs") {
            for direction in [Direction::Ingress, Direction::Egress] {
                for filter in netlink.filters(link, direction).await.expect("list filters") {
                    let Some(id) = filter.program else { continue };
                    let mut loaded = loaded_programs().filter_map(Result::ok);
                    let program = loaded.find(|program| program.id() == id).expect("it is loaded");
                    let name = filter.name.as_deref().and_then(|name| name.split(':').next());
                    let (name, program) = change(name.expect("a name"), program.fd().expect("a descriptor"));
                    let place = FilterPlace { link, direction, priority: filter.priority, name };
                    let replaced = netlink.replace_bpf_filter(&place, filter.handle, program.as_fd());
                    replaced.await.expect("replace a filter");
                }
            }
        }
    };
    linux::netns::in_netns_async(here.as_fd(), work).expect("enter the namespace");
}

/// Makes what is pinned the earlier layout's: its folder, and the maps that its programs really use.
pub fn leave(pins: &Path) {
    let older = folder(pins);
    std::fs::rename(pins, &older).expect("rename the layout");
    for name in OTHER_ROOM {
        std::fs::remove_file(older.join(name)).expect("unpin a map");
        let map = MapData::from_pin(aside(name)).expect("a pinned map");
        map.pin(older.join(name)).expect("pin a map");
        std::fs::remove_file(aside(name)).expect("unpin a map");
    }
}
