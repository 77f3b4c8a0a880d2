//! The command line: raw values, then validated options whose errors name the flag, the value and what was expected.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use apiserver::bootstrap::Options;
use apiserver::tolerations::DefaultTolerations;
use clap::{Args, Parser, Subcommand};
use ipnetwork::IpNetwork;

/// The Orlop control plane: API server, scheduler and controllers.
#[derive(Debug, Parser)]
// Of a flag that is given twice the last counts, as with upstream's programs.
#[command(name = "orlop-server", args_conflicts_with_subcommands = true, args_override_self = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub serve: ServeArguments,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write the kubeconfig and certificates that a node needs to join.
    NodeCredentials(NodeCredentialsArguments),
    /// Look at the store of a server that does not run, or at a backup.
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
}

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Check that a store is sound; changes nothing.
    Check {
        /// `store.redb` in the server's data directory, or a backup.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct ServeArguments {
    /// Where certificates, the store and admin.kubeconfig are kept.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address to listen on.
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub secure_port: u16,
    /// Address that clients and nodes reach this server at.
    #[arg(long, value_name = "IP")]
    pub advertise_address: Option<IpAddr>,
    /// A further name or address of the serving certificate; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub tls_san: Vec<String>,
    /// Range of ClusterIPs, or one of each family with a comma between them, the default one first.
    #[arg(long, value_name = "CIDR", default_value = "10.96.0.0/16")]
    pub service_cluster_ip_range: String,
    /// Range that nodes get their pod networks from, or one of each family with a comma between them.
    #[arg(long, value_name = "CIDR", default_value = "10.244.0.0/16")]
    pub cluster_cidr: String,
    /// Range of node ports.
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767")]
    pub service_node_port_range: String,
    /// How long a node may be silent before it counts as unreachable; nodes renew their Leases every 10 s.
    #[arg(long, value_name = "DURATION", default_value = "50s")]
    pub node_monitor_grace_period: String,
    /// How soon a node that is not ready is looked at again.
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub node_monitor_period: String,
    /// How long pods that say nothing about it stay on a node that is not ready.
    #[arg(long, value_name = "SECONDS", default_value_t = DefaultTolerations::default().not_ready_seconds)]
    pub default_not_ready_toleration_seconds: u32,
    /// How long pods that say nothing about it stay on a node that is unreachable.
    #[arg(long, value_name = "SECONDS", default_value_t = DefaultTolerations::default().unreachable_seconds)]
    pub default_unreachable_toleration_seconds: u32,
}

#[derive(Debug, Args)]
pub struct NodeCredentialsArguments {
    /// The server's data directory.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The node's name.
    #[arg(long, value_name = "NAME")]
    pub node: String,
    /// The node's address, for its kubelet's serving certificate.
    #[arg(long, value_name = "IP")]
    pub address: IpAddr,
    /// Where to write kubeconfig, kubelet.crt, kubelet.key and client-ca.crt.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The server's URL; the one of its last start when it is not given.
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
}

/// Validated options of the whole control plane.
#[derive(Debug)]
pub struct ServeOptions {
    pub server: Options,
    /// One, or one of each family.
    pub cluster_cidrs: Vec<IpNetwork>,
    pub node_monitor_grace_period: Duration,
    pub node_monitor_period: Duration,
}

impl ServeArguments {
    pub fn validate(&self) -> anyhow::Result<ServeOptions> {
        let Some(data_dir) = self.data_dir.clone() else { bail!("--data-dir: required") };
        let Some(advertise) = self.advertise_address else { bail!("--advertise-address: required") };
        if advertise.is_unspecified() {
            bail!("--advertise-address {advertise}: expected an address that nodes can reach");
        }
        let server = Options {
            data_dir,
            bind: SocketAddr::new(self.bind_address, self.secure_port),
            advertise,
            extra_names: self.tls_san.clone(),
            service_ranges: ranges("--service-cluster-ip-range", &self.service_cluster_ip_range)?,
            node_ports: port_range(&self.service_node_port_range)?,
            tolerations: DefaultTolerations {
                not_ready_seconds: self.default_not_ready_toleration_seconds,
                unreachable_seconds: self.default_unreachable_toleration_seconds,
            },
        };
        Ok(ServeOptions {
            server,
            cluster_cidrs: ranges("--cluster-cidr", &self.cluster_cidr)?,
            node_monitor_grace_period: duration(
                "--node-monitor-grace-period",
                &self.node_monitor_grace_period,
            )?,
            node_monitor_period: duration("--node-monitor-period", &self.node_monitor_period)?,
        })
    }
}

/// One network, or one of each family.
fn ranges(flag: &str, text: &str) -> anyhow::Result<Vec<IpNetwork>> {
    let ranges: Result<Vec<IpNetwork>, _> = text.split(',').map(|range| range.trim().parse()).collect();
    match ranges.as_deref() {
        Ok([_]) => {}
        Ok([one, other]) if one.is_ipv4() != other.is_ipv4() => {}
        _ => bail!(
            "{flag} {text:?}: expected a CIDR like 10.244.0.0/16, or one of IPv4 and one of IPv6 with a comma \
             between them"
        ),
    }
    Ok(ranges?)
}

fn port_range(text: &str) -> anyhow::Result<RangeInclusive<u16>> {
    let parsed =
        text.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
    match parsed {
        Some(range) if !range.is_empty() && *range.start() > 0 => Ok(range),
        _ => bail!("--service-node-port-range {text:?}: expected a range like 30000-32767"),
    }
}

/// `40s`, `2m`, `1h`, `1m30s`, `500ms`.
fn duration(flag: &str, text: &str) -> anyhow::Result<Duration> {
    let bad = || anyhow::anyhow!("{flag} {text:?}: expected a duration like 40s or 2m");
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
        let (unit, milliseconds) =
            units.into_iter().find(|(unit, _)| rest.starts_with(unit)).ok_or_else(bad)?;
        rest = &rest[unit.len()..];
        total += Duration::from_millis(number.checked_mul(milliseconds).ok_or_else(bad)?);
    }
    if total.is_zero() { Err(bad()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    //! Values of flags.

    use super::*;

    #[test]
    fn durations_and_ranges() {
        assert_eq!(duration("--a", "1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("--a", "500ms").unwrap(), Duration::from_millis(500));
        for bad in ["", "s", "10", "-1s", "1x", "0s"] {
            assert!(duration("--a", bad).is_err(), "{bad}");
        }
        assert_eq!(port_range("30000-32767").unwrap(), 30000..=32767);
        for bad in ["", "1", "5-4", "0-10", "1-70000"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
        assert_eq!(ranges("--cluster-cidr", "10.244.0.0/16,fd00::/48").unwrap().len(), 2);
        for bad in ["", "10.244.0.0/16,", "10.244.0.0/16,10.245.0.0/16", "10.1.0.0/16,fd00::/48,fd01::/48"] {
            assert!(ranges("--cluster-cidr", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_of_two_counts() {
        let cli = Cli::parse_from(["orlop-server", "--secure-port", "1", "--secure-port=2"]);
        assert_eq!(cli.serve.secure_port, 2);
    }
}
