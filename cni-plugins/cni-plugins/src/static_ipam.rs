//! The IPAM plugin `static`: answers with the addresses that are configured or asked for.
//!
//! Inputs: `ipam.addresses`, `ipam.routes`, `ipam.dns`; `IP` and `GATEWAY` in `CNI_ARGS`, which add addresses;
//! `args.cni.ips`, and above it `runtimeConfig.ips`, which replace all others. It keeps nothing, so that DEL and GC have
//! nothing to do, and it does not care who else has an address.

use cni::{
    AddResult, Dns, ErrorReply, IpConfig, Route, code,
    json::{self, JsonError, Object},
};
use ipnetwork::IpNetwork;

use crate::plugin::{Plugin, Request, decoding};

/// See the module.
#[derive(Debug)]
pub struct Static;

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    addresses: Vec<IpConfig>,
    routes: Vec<Route>,
    dns: Dns,
}

impl Config {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        let ipam = root.object("ipam").map_err(decoding)?;
        let ipam = ipam.ok_or_else(|| ErrorReply::config("IPAM config missing 'ipam' key"))?;
        let mut addresses = configured(&ipam).map_err(decoding)?;
        addresses.extend(of_environment(request)?);
        let asked_for = asked_for(&root).map_err(decoding)?;
        if !asked_for.is_empty() {
            addresses = asked_for;
        }
        let v4 = addresses.iter().filter(|ip| ip.address.is_ipv4()).count();
        if !request.version.has_interfaces() && (v4 > 1 || addresses.len() - v4 > 1) {
            let version = request.version;
            let message = format!("CNI version {version} does not support more than 1 address per family");
            return Err(ErrorReply::config(message));
        }
        let routes = Route::read_all(&ipam).map_err(decoding)?;
        Ok(Self { addresses, routes, dns: Dns::read(&ipam).map_err(decoding)? })
    }
}

fn ip_config(address: IpNetwork) -> IpConfig {
    IpConfig { interface: None, address, gateway: None }
}

fn configured(ipam: &Object<'_>) -> Result<Vec<IpConfig>, JsonError> {
    let read = |(place, value)| -> Result<IpConfig, JsonError> {
        let entry = Object::of(value, place)?;
        let address = entry.required("address", entry.cidr("address")?)?;
        Ok(IpConfig { gateway: entry.ip("gateway")?, ..ip_config(address) })
    };
    ipam.array("addresses")?.into_iter().map(read).collect()
}

/// Lists, divided by commas; a gateway is that of the addresses whose network it is in.
fn of_environment(request: &Request) -> Result<Vec<IpConfig>, ErrorReply> {
    let invalid = |error: String| ErrorReply::new(code::INVALID_ENVIRONMENT, format!("CNI_ARGS: {error}"));
    let args = request.args(&["IP", "GATEWAY"])?;
    let list = |key: &str| {
        args.get(key).filter(|list| !list.is_empty()).into_iter().flat_map(|list| list.split(','))
    };
    let mut addresses = Vec::new();
    for text in list("IP") {
        let address = json::cidr(text.trim()).map_err(|error| {
            invalid(format!("the 'ip' field is expected to be in CIDR notation: {error}"))
        })?;
        addresses.push(ip_config(address));
    }
    for text in list("GATEWAY") {
        let gateway =
            json::ip(text.trim()).map_err(|error| invalid(format!("invalid gateway address: {error}")))?;
        for ip in addresses.iter_mut().filter(|ip: &&mut IpConfig| ip.address.contains(gateway)) {
            ip.gateway = Some(gateway);
        }
    }
    Ok(addresses)
}

/// What the runtime wants instead, most urgent last.
fn asked_for(root: &Object<'_>) -> Result<Vec<IpConfig>, JsonError> {
    let mut wanted = Vec::new();
    for parent in [root.cni_args()?, root.object("runtimeConfig")?].iter().flatten() {
        let mut these = Vec::new();
        for (index, text) in parent.strings("ips")?.iter().enumerate() {
            let place = format!("{}[{index}]", parent.place_of("ips"));
            these.push(ip_config(json::cidr(text).map_err(|error| JsonError::key(place, error))?));
        }
        if !these.is_empty() {
            wanted = these;
        }
    }
    Ok(wanted)
}

impl Plugin for Static {
    const NAME: &'static str = "static";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let Config { addresses, routes, dns } = Config::read(request)?;
        Ok(AddResult { ips: addresses, routes, dns, ..AddResult::default() })
    }

    fn del(&self, _request: &Request) -> Result<(), ErrorReply> {
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let expected = request.required_prev_result("Required prevResult missing")?;
        for wanted in &config.addresses {
            let is_it = |ip: &IpConfig| {
                ip.address.ip() == wanted.address.ip()
                    && (wanted.gateway.is_none() || ip.gateway == wanted.gateway)
            };
            if !expected.ips.iter().any(is_it) {
                let (address, ifname) = (wanted.address.ip(), &request.ifname);
                let message = format!("static: Failed to match addr {address} on interface {ifname}");
                return Err(ErrorReply::internal(message));
            }
        }
        Ok(())
    }

    fn gc(&self, _request: &Request) -> Result<(), ErrorReply> {
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        Config::read(request).map(drop)
    }
}

#[cfg(test)]
mod tests;
