//! Where fuzzers, and the tests that replay what fuzzers found, put foreign bytes in. Only parsers are run: nothing is made, and
//! no file is read that the bytes name.

use cni::exec::Verb;

use crate::{
    bandwidth, bridge, dhcp, firewall, flannel, host_device, host_local, ipvlan, macvlan,
    plugin::{Environment, Request},
    portmap, ptp, sbr, static_ipam, tuning, vlan, vrf,
};

/// A line of `CNI_ARGS`, and then a configuration, which every plugin reads for every verb.
pub fn configuration(bytes: &[u8]) {
    let (args, config) = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (&[][..], bytes),
    };
    let some = |text: &str| Some(text.to_owned());
    let environment = Environment {
        command: None,
        container_id: some("container"),
        netns: some("/nonexistent/netns"),
        ifname: some("eth0"),
        args: std::str::from_utf8(args).ok().and_then(some),
        path: some("/nonexistent"),
        netns_override: some("1"),
    };
    for verb in [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status] {
        if let Ok(request) = environment.request(verb, config.to_vec()) {
            read(&request);
        }
    }
}

fn read(request: &Request) {
    if let Ok(Some(result)) = request.prev_result() {
        // What can be read can be written, unless the version has no place for it.
        drop(result.to_json(request.version));
    }
    drop(request.valid_attachments());
    drop(bandwidth::config::Config::read(request));
    drop(bridge::config::Config::read(request));
    drop(dhcp::config::Config::read(request));
    drop(firewall::config::Config::read(request));
    drop(flannel::config::Config::read(request));
    drop(host_device::config::Config::read(request));
    drop(host_local::config::Config::read(request));
    drop(ipvlan::Config::read(request));
    drop(macvlan::Config::read(request));
    drop(portmap::config::Config::read(request));
    drop(ptp::Config::read(request));
    drop(sbr::config::Config::read(request));
    drop(static_ipam::Config::read(request));
    drop(tuning::config::Config::read(request));
    drop(vlan::Config::read(request));
    drop(vrf::Config::read(request));
}

/// Files and packets that are no JSON.
pub fn texts(bytes: &[u8]) {
    dhcp::fuzz(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        flannel::fuzz(text);
        host_local::fuzz(text);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    fn replay(corpus: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(corpus);
        let mut count = 0;
        for entry in fs::read_dir(folder).expect("a corpus") {
            run(&fs::read(entry.expect("an entry").path()).expect("a file"));
            count += 1;
        }
        assert!(count > 0);
    }

    #[test]
    fn configurations_of_the_corpus_end() {
        replay("configuration", super::configuration);
    }

    #[test]
    fn texts_of_the_corpus_end() {
        replay("texts", super::texts);
    }
}
