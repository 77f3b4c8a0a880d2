//! A runtime's view: `cni::Client` over the executables.

use std::fs;

use cni::{Attachment, Client, Options, ValidAttachment};

use super::node::{Container, Node, bin_dir, block_on, host_links};

#[test]
fn a_client_attaches_checks_collects_and_detaches() {
    let node = Node::new();
    let config = node.config("1.1.0");
    fs::create_dir(node.path("net.d")).expect("a folder");
    fs::write(node.path("net.d/10-pods.conflist"), {
        let list = serde_json::json!({"cniVersion": "1.1.0", "name": "pods", "plugins": [config]});
        list.to_string()
    })
    .expect("a file");
    let client = Client::new(Options {
        conf_dir: node.path("net.d"),
        bin_dirs: vec![bin_dir().to_owned()],
        cache_dir: node.path("cache"),
        ..Options::default()
    });
    let containers = [Container::new("a"), Container::new("b")];
    let attachment = |container: &Container| Attachment {
        container_id: container.id.clone(),
        netns: Some(container.netns.path().to_owned()),
        ifname: "eth0".to_owned(),
        ..Attachment::default()
    };
    block_on(async {
        client.status().await.expect("the network is ready");
        for container in &containers {
            client.add(&attachment(container)).await.expect("an attachment");
            client.check(&attachment(container)).await.expect("it is as it was made");
        }
    });
    let address = "10.97.0.3".parse().expect("an address");
    containers[0].talks_to(Some(&containers[1]), address);
    block_on(async {
        let valid = [ValidAttachment { container_id: "a".to_owned(), ifname: "eth0".to_owned() }];
        client.gc(&valid).await.expect("b is collected");
        assert_eq!(node.leases(), ["10.97.0.2", "fd97::2"]);
        for container in &containers {
            client.del(&attachment(container)).await.expect("it is detached");
        }
    });
    assert_eq!(node.leases(), Vec::<String>::new());
    assert!(!host_links().iter().any(|link| link.is_kind("veth")));
}
