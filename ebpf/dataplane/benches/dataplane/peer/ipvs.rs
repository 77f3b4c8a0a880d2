//! What kube-proxy's IPVS mode makes: a virtual server for each address of a service, and a link that has all those addresses.
//!
//! The virtual servers alone: kube-proxy has iptables masquerade besides, by sets of addresses, which would cost more.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use super::{NotMeasured, Published, Site, feed};

/// The name of kube-proxy's.
const LINK: &str = "kube-ipvs0";

pub fn load(site: &Site, services: &[Published]) -> Result<Duration, NotMeasured> {
    let (mut addresses, mut servers) = (format!("link add {LINK} type dummy\n"), String::new());
    for Published { vip, node_port, endpoints, .. } in services {
        let prefix = if vip.is_ipv4() { 32 } else { 128 };
        let _ = writeln!(addresses, "addr add {}/{prefix} dev {LINK}", vip.ip());
        let node_port = node_port.map(|port| (site.node, port).into());
        for address in [Some(*vip), node_port].into_iter().flatten() {
            let _ = writeln!(servers, "-A -t {address} -s rr");
            for endpoint in endpoints {
                let _ = writeln!(servers, "-a -t {address} -r {endpoint} -m -w 1");
            }
        }
    }
    // First: it loads the module, which has the settings.
    let loaded = feed(Command::new("ipvsadm").arg("-R"), &servers)?;
    // As kube-proxy has it.
    let followed = std::fs::write("/proc/sys/net/ipv4/vs/conntrack", "1");
    followed.map_err(|error| NotMeasured(format!("net.ipv4.vs.conntrack: {error}")))?;
    Ok(loaded + feed(Command::new("ip").args(["-batch", "-"]), &addresses)?)
}
