//! What kube-proxy's iptables mode writes: one long chain of all services, a chain for each of them that chooses by chance, and one for
//! each endpoint.
//!
//! `xtask` says in [`PROGRAM`] how `iptables-restore` is run: its package is unpacked, not installed.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use super::{NotMeasured, Published, Site, feed};

/// A command line, word by line, that takes the name of the program as one more word.
const PROGRAM: &str = "ORLOP_BENCH_IPTABLES";

pub fn load(site: &Site, services: &[Published]) -> Result<Duration, NotMeasured> {
    let program =
        std::env::var(PROGRAM).map_err(|_unset| NotMeasured(format!("no iptables: {PROGRAM} is not set")))?;
    let mut words = program.lines();
    let mut command = Command::new(words.next().unwrap_or_default());
    let name = if site.node.is_ipv4() { "iptables-restore" } else { "ip6tables-restore" };
    command.args(words).args([name, "-w", "5", "--noflush", "--counters"]);
    let loaded = feed(&mut command, &rules(site, services));
    // It leaves that behind, where it has one.
    let _none = std::fs::remove_file("/run/xtables.lock");
    loaded
}

fn rules(site: &Site, services: &[Published]) -> String {
    let (mut chains, mut rules) = (String::new(), String::new());
    for chain in [
        "PREROUTING ACCEPT",
        "OUTPUT ACCEPT",
        "POSTROUTING ACCEPT",
        "KUBE-SERVICES -",
        "KUBE-NODEPORTS -",
        "KUBE-POSTROUTING -",
        "KUBE-MARK-MASQ -",
    ] {
        let _ = writeln!(chains, ":{chain} [0:0]");
    }
    rules.push_str(
        "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n",
    );
    for service in services {
        one(&mut chains, &mut rules, site, service);
    }
    rules.push_str(
        "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" \
         -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n",
    );
    format!("*nat\n{chains}{rules}COMMIT\n")
}

fn one(chains: &mut String, rules: &mut String, site: &Site, service: &Published) {
    let Published { name, vip, node_port, endpoints } = service;
    let (chain, comment) = (format!("KUBE-SVC-{name:0>16}"), format!("default/{name}:http"));
    let to = format!("-p tcp -d {} --dport {}", host(vip.ip()), vip.port());
    let _ = writeln!(chains, ":{chain} - [0:0]");
    let _ = writeln!(
        rules,
        "-A KUBE-SERVICES -m comment --comment \"{comment} cluster IP\" -m tcp {to} -j {chain}"
    );
    let pods = site.pods;
    let _ = writeln!(
        rules,
        "-A {chain} -m comment --comment \"{comment} cluster IP\" -m tcp {to} ! -s {pods} -j KUBE-MARK-MASQ"
    );
    for (number, endpoint) in endpoints.iter().enumerate() {
        let chosen = format!("KUBE-SEP-{name:0>13}{number:0>3}");
        let left = endpoints.len() - number;
        let chance = match left {
            1 => String::new(),
            _ => format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64),
        };
        let _ = writeln!(chains, ":{chosen} - [0:0]");
        let _ = writeln!(
            rules,
            "-A {chain} -m comment --comment \"{comment} -> {endpoint}\"{chance} -j {chosen}"
        );
        let source = host(endpoint.ip());
        let _ =
            writeln!(rules, "-A {chosen} -m comment --comment \"{comment}\" -s {source} -j KUBE-MARK-MASQ");
        let _ = writeln!(
            rules,
            "-A {chosen} -m comment --comment \"{comment}\" -m tcp -p tcp -j DNAT --to-destination {endpoint}"
        );
    }
    let Some(node_port) = node_port else { return };
    let external = format!("KUBE-EXT-{name:0>16}");
    let _ = writeln!(chains, ":{external} - [0:0]");
    let _ = writeln!(
        rules,
        "-A KUBE-NODEPORTS -m comment --comment \"{comment}\" -m tcp -p tcp --dport {node_port} -j {external}"
    );
    let _ = writeln!(
        rules,
        "-A {external} -m comment --comment \"masquerade traffic for {comment} external destinations\" -j KUBE-MARK-MASQ"
    );
    let _ = writeln!(rules, "-A {external} -j {chain}");
}

/// The network of one address.
fn host(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}
