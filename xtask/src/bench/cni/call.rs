//! Calls of a chain's plugins, as a container runtime makes them.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use linux::netns::Netns;
use serde_json::{Value, json};

/// Where the reference's `nft` is looked for; with `iptables` in reach it would use that.
const TOOLS: &str = "/run/cni/tools";

pub struct Implementation {
    pub name: &'static str,
    pub plugins: PathBuf,
}

/// Plugins in their order, with their configurations.
pub struct Chain {
    pub name: &'static str,
    plugins: Vec<Value>,
}

impl Chain {
    pub fn bridge() -> Self {
        Self { name: "bridge + host-local", plugins: vec![bridge()] }
    }

    pub fn whole() -> Self {
        let ports = json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
        ]);
        let rates = json!({
            "ingressRate": 100_000_000, "ingressBurst": 10_000_000, "egressRate": 100_000_000, "egressBurst": 10_000_000,
        });
        let portmap =
            json!({"type": "portmap", "backend": "nftables", "runtimeConfig": {"portMappings": ports}});
        let bandwidth = json!({"type": "bandwidth", "runtimeConfig": {"bandwidth": rates}});
        Self {
            name: "bridge + host-local + portmap + bandwidth",
            plugins: vec![bridge(), portmap, bandwidth],
        }
    }

    /// Addresses alone.
    pub fn ipam(data_dir: &str) -> Self {
        let ipam = json!({"type": "host-local", "subnet": "10.64.0.0/16", "dataDir": data_dir});
        Self { name: "host-local", plugins: vec![json!({"type": "host-local", "ipam": ipam})] }
    }

    /// The result of the last plugin.
    pub fn add(&self, by: &Implementation, container: &Netns, index: usize) -> Result<Value> {
        let mut result = Value::Null;
        for plugin in &self.plugins {
            result = by.call("ADD", plugin, &result, container, index)?;
        }
        Ok(result)
    }

    pub fn del(&self, by: &Implementation, container: &Netns, index: usize, result: &Value) -> Result<()> {
        for plugin in self.plugins.iter().rev() {
            by.call("DEL", plugin, result, container, index)?;
        }
        Ok(())
    }

    /// Asks each plugin only what it speaks.
    pub fn versions(&self, by: &Implementation, container: &Netns) -> Result<()> {
        self.plugins
            .iter()
            .try_for_each(|plugin| by.call("VERSION", plugin, &Value::Null, container, 0).map(drop))
    }
}

fn bridge() -> Value {
    let ipam = json!({"type": "host-local", "subnet": "10.80.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]});
    json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": ipam})
}

impl Implementation {
    fn call(
        &self,
        verb: &str,
        plugin: &Value,
        result: &Value,
        container: &Netns,
        index: usize,
    ) -> Result<Value> {
        let mut config = plugin.clone();
        config["cniVersion"] = json!("1.0.0");
        // Leases of both lie in one folder tree.
        config["name"] = json!(if plugin["type"] == "host-local" { "net" } else { self.name });
        if !result.is_null() {
            config["prevResult"] = result.clone();
        }
        let name = plugin["type"].as_str().context("a plugin has a type")?;
        let mut child = Command::new(self.plugins.join(name))
            .env_clear()
            .env("PATH", TOOLS)
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("container-{index}"))
            .env("CNI_NETNS", container.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.plugins)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {name} of {}", self.name))?;
        let mut stdin = child.stdin.take().context("standard input")?;
        match stdin.write_all(config.to_string().as_bytes()) {
            // VERSION is answered without it.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                return Err(error).context("write the configuration");
            }
            _ => drop(stdin),
        }
        let output = child.wait_with_output().context("wait for a plugin")?;
        if !output.status.success() {
            bail!("{} {name} {verb}: {}", self.name, String::from_utf8_lossy(&output.stdout));
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
    }
}

/// Makes the folder of tools that plugins find.
pub fn tools() -> Result<()> {
    std::fs::create_dir_all(TOOLS).context("make a folder for tools")?;
    let nft = ["/usr/sbin/nft", "/usr/bin/nft"].map(Path::new).into_iter().find(|path| path.exists());
    let nft = nft.context("nft is not installed: run `cargo xtask setup`")?;
    std::os::unix::fs::symlink(nft, Path::new(TOOLS).join("nft")).context("link nft")
}
