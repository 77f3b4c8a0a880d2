//! WireGuard: the key and the port of a link, its peers, and which addresses are whose.
//!
//! Owns: one socket per [`Wireguard`], bound for good to the network namespace that it was opened in. The link is made as
//! any other ([`crate::netlink::LinkKind::Wireguard`]). A private key goes to the kernel; what that says of it among a link's
//! other facts is skipped, and whoever needs to know a link's identity gets its public key. It refuses to decide who is a peer.
//!
//! Calls block while another request holds the kernel's lock of links. Formats are from `linux/wireguard.h`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    str::FromStr,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ipnetwork::IpNetwork;
use netlink_bindings::{
    builtin::BuiltinNfgenmsg,
    nlctrl,
    wireguard::{self as wire, WgpeerFlags},
};
use nix::sys::socket::SockProtocol;

use crate::{
    blocking::{Message, Request, Socket},
    netlink::Error,
};

/// `GENL_ID_CTRL`: who knows the other families' numbers.
const CONTROL: u16 = 0x10;
const KEY_LENGTH: usize = wire::KEY_LEN as usize;

/// Who a WireGuard link is. Shown in base64, as `wg` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LENGTH]);

/// The text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid key {text:?}: expected 32 bytes in base64, not all of them zero")]
pub struct InvalidKey {
    pub text: String,
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = STANDARD.decode(text).ok().and_then(|bytes| key(&bytes));
        read.ok_or_else(|| InvalidKey { text: text.to_owned() })
    }
}

/// What a link proves with that it is who it says.
pub struct PrivateKey([u8; KEY_LENGTH]);

impl PrivateKey {
    /// A new one, from the kernel's random numbers.
    ///
    /// # Errors
    /// When these cannot be read.
    pub fn random() -> io::Result<Self> {
        let mut key = [0; KEY_LENGTH];
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        Ok(Self(key))
    }
}

/// Where a peer is, and what is its.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// None while nobody said: the peer has to speak first. The kernel follows a peer that moves.
    pub endpoint: Option<SocketAddr>,
    /// Packets to these go to the peer, and only packets from these are taken from it.
    pub networks: BTreeSet<IpNetwork>,
}

/// A link as the kernel reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// None before it has a private key.
    pub public_key: Option<PublicKey>,
    /// UDP port.
    pub port: u16,
    pub peers: BTreeMap<PublicKey, Tunnel>,
}

/// A socket in one network namespace.
#[derive(Debug)]
pub struct Wireguard {
    socket: Socket,
    /// The kernel's number for these requests.
    family: u16,
}

impl Wireguard {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// `ENOENT` where the kernel has no WireGuard, or has not loaded it: making the link does.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open_for(SockProtocol::NetlinkGeneric)?;
        let mut body = Vec::new();
        drop(nlctrl::OpGetfamilyDo::encode_request(&mut body).push_family_name(wire::PROTONAME_CSTR));
        let request = request("find", "WireGuard in the kernel", CONTROL, body);
        let family = socket.ask(&request, |message| {
            let family = nlctrl::OpGetfamilyDo::decode_request(message.body).get_family_id();
            family.map_err(|error| error.to_string())
        })?;
        Ok(Self { socket, family })
    }

    /// Reads a link.
    ///
    /// # Errors
    /// `ENODEV` when there is no such link, `EOPNOTSUPP` when it is of another kind.
    pub fn device(&self, link: u32) -> Result<Device, Error> {
        let mut body = Vec::new();
        drop(wire::OpGetDeviceDump::encode_request(&mut body).push_ifindex(link));
        let request = request("read WireGuard of", named(link), self.family, body);
        let mut device = Device::default();
        for part in self.socket.list(&request, |message| read(message).map(Some))? {
            device.public_key = device.public_key.or(part.public_key);
            device.port = device.port.max(part.port);
            for (key, tunnel) in part.peers {
                // A peer with many networks goes on in the next message, by its key alone.
                match device.peers.get_mut(&key) {
                    Some(begun) => begun.networks.extend(tunnel.networks),
                    None => drop(device.peers.insert(key, tunnel)),
                }
            }
        }
        Ok(device)
    }

    /// Gives a link its identity, and the UDP port that it listens on once it is up. Its peers stay.
    ///
    /// # Errors
    /// As [`Wireguard::device`]; `EADDRINUSE` when it is up and the port is taken.
    pub fn set_identity(&self, link: u32, key: &PrivateKey, port: u16) -> Result<(), Error> {
        let mut body = Vec::new();
        let device = wire::OpSetDeviceDo::encode_request(&mut body).push_ifindex(link);
        drop(device.push_private_key(&key.0).push_listen_port(port));
        self.socket.tell(&request("set key of", named(link), self.family, body))
    }

    /// Changes the UDP port that a link listens on.
    ///
    /// # Errors
    /// As [`Wireguard::set_identity`].
    pub fn set_port(&self, link: u32, port: u16) -> Result<(), Error> {
        let mut body = Vec::new();
        drop(wire::OpSetDeviceDo::encode_request(&mut body).push_ifindex(link).push_listen_port(port));
        self.socket.tell(&request("set port of", named(link), self.family, body))
    }

    /// Adds a peer, or changes the one with this key to be just this. Networks that were another peer's become its.
    ///
    /// # Errors
    /// As [`Wireguard::device`].
    pub fn replace_peer(&self, link: u32, key: PublicKey, tunnel: &Tunnel) -> Result<(), Error> {
        let mut body = Vec::new();
        let device = wire::OpSetDeviceDo::encode_request(&mut body).push_ifindex(link);
        let mut peer = device.array_peers().entry_nested().push_public_key(&key.0);
        peer = peer.push_flags(WgpeerFlags::ReplaceAllowedips as u32);
        if let Some(endpoint) = tunnel.endpoint {
            peer = peer.push_endpoint(endpoint);
        }
        let mut networks = peer.array_allowedips();
        for network in &tunnel.networks {
            let family = if network.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            let entry = networks.entry_nested().push_family(family as u16).push_ipaddr(network.network());
            networks = entry.push_cidr_mask(network.prefix()).end_nested();
        }
        drop(networks);
        self.socket.tell(&request("replace peer", format!("{key} of {}", named(link)), self.family, body))
    }

    /// Removes a peer; one that is not there is fine.
    ///
    /// # Errors
    /// As [`Wireguard::device`].
    pub fn remove_peer(&self, link: u32, key: PublicKey) -> Result<(), Error> {
        let mut body = Vec::new();
        let device = wire::OpSetDeviceDo::encode_request(&mut body).push_ifindex(link);
        let peer = device.array_peers().entry_nested().push_public_key(&key.0);
        drop(peer.push_flags(WgpeerFlags::RemoveMe as u32));
        self.socket.tell(&request("remove peer", format!("{key} of {}", named(link)), self.family, body))
    }
}

fn named(link: u32) -> String {
    format!("link index {link}")
}

fn request(operation: &'static str, object: impl Into<String>, kind: u16, body: Vec<u8>) -> Request {
    Request { operation, object: object.into(), kind, flags: 0, body }
}

/// One message of a device.
fn read(message: &Message<'_>) -> Result<Device, String> {
    if message.body.len() < BuiltinNfgenmsg::len() {
        return Err("a message too short".to_owned());
    }
    let attributes = wire::OpGetDeviceDump::decode_request(message.body);
    let mut device = Device {
        public_key: attributes.get_public_key().ok().and_then(key),
        port: attributes.get_listen_port().unwrap_or_default(),
        peers: BTreeMap::new(),
    };
    let Ok(peers) = attributes.get_peers() else { return Ok(device) };
    for peer in peers {
        // Nobody that was made here.
        let Some(key) = peer.get_public_key().ok().and_then(key) else { continue };
        let tunnel = device
            .peers
            .entry(key)
            .or_insert_with(|| Tunnel { endpoint: peer.get_endpoint().ok(), networks: BTreeSet::new() });
        let Ok(networks) = peer.get_allowedips() else { continue };
        for network in networks {
            let (ip, prefix) = (network.get_ipaddr(), network.get_cidr_mask());
            let (ip, prefix) =
                (ip.map_err(|error| error.to_string())?, prefix.map_err(|error| error.to_string())?);
            tunnel.networks.insert(IpNetwork::new(ip, prefix).map_err(|error| error.to_string())?);
        }
    }
    Ok(device)
}

/// All zeros is what a link without a key says.
fn key(bytes: &[u8]) -> Option<PublicKey> {
    let bytes: [u8; KEY_LENGTH] = bytes.try_into().ok()?;
    (bytes != [0; KEY_LENGTH]).then_some(PublicKey(bytes))
}

#[cfg(test)]
mod tests;
