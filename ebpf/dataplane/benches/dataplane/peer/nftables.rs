//! What kube-proxy's nftables mode writes: a map from addresses to a chain for each service, which leads to a chain for each endpoint.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use super::{NotMeasured, Published, Site, feed};

pub fn load(site: &Site, services: &[Published]) -> Result<Duration, NotMeasured> {
    feed(Command::new("nft").args(["-f", "-"]), &rules(site, services))
}

fn rules(site: &Site, services: &[Published]) -> String {
    let (table, kind) = if site.node.is_ipv4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
    let node = site.node;
    let mut text = format!(
        "table {table} kube-proxy {{\n\
         map service-ips {{ type {kind} . inet_proto . inet_service : verdict; }}\n\
         map service-nodeports {{ type inet_proto . inet_service : verdict; }}\n\
         set nodeport-ips {{ type {kind}; elements = {{ {node} }}; }}\n\
         chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}\n\
         chain services {{\n\
         {table} daddr . meta l4proto . th dport vmap @service-ips;\n\
         {table} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports;\n\
         }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump services; }}\n\
         chain nat-output {{ type nat hook output priority -100; policy accept; jump services; }}\n\
         chain masquerading {{ meta mark & 0x4000 == 0 return; meta mark set meta mark xor 0x4000; masquerade fully-random; }}\n\
         chain nat-postrouting {{ type nat hook postrouting priority srcnat; policy accept; jump masquerading; }}\n\
         }}\n",
    );
    for Published { name, vip, node_port, endpoints } in services {
        let (address, port) = (vip.ip(), vip.port());
        let mut choices = Vec::new();
        for (number, endpoint) in endpoints.iter().enumerate() {
            let chain = format!("endpoint-{name}-{number}");
            let add = format!("add rule {table} kube-proxy {chain}");
            let _ = writeln!(text, "add chain {table} kube-proxy {chain}");
            let _ = writeln!(text, "{add} {table} saddr {} jump mark-for-masquerade", endpoint.ip());
            let _ = writeln!(text, "{add} meta l4proto tcp dnat to {endpoint}");
            choices.push(format!("{number} : goto {chain}"));
        }
        let (count, choices, pods) = (endpoints.len(), choices.join(", "), site.pods);
        let chain = format!("service-{name}");
        let add = format!("add rule {table} kube-proxy {chain}");
        let _ = writeln!(text, "add chain {table} kube-proxy {chain}");
        let _ = writeln!(
            text,
            "{add} {table} daddr {address} tcp dport {port} {table} saddr != {pods} jump mark-for-masquerade"
        );
        let _ = writeln!(text, "{add} numgen random mod {count} vmap {{ {choices} }}");
        let element = format!("{address} . tcp . {port} : goto {chain}");
        let _ = writeln!(text, "add element {table} kube-proxy service-ips {{ {element} }}");
        let Some(node_port) = node_port else { continue };
        let external = format!("external-{name}");
        let add = format!("add rule {table} kube-proxy {external}");
        let _ = writeln!(text, "add chain {table} kube-proxy {external}");
        let _ = writeln!(text, "{add} jump mark-for-masquerade");
        let _ = writeln!(text, "{add} goto {chain}");
        let element = format!("tcp . {node_port} : goto {external}");
        let _ = writeln!(text, "add element {table} kube-proxy service-nodeports {{ {element} }}");
    }
    text
}
