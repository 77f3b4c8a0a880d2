//! Addresses of links: list, add, delete.
//!
//! Owns the translation between address messages and [`Address`]. An IPv4 address gets the broadcast address of its
//! prefix, as `ip address add ADDR/LEN broadcast +` does.

use std::net::IpAddr;

use futures::TryStreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
pub use rtnetlink::packet_route::address::{AddressFlags, AddressScope};

use super::{Error, Netlink, answer};

/// An address as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The link that carries it.
    pub link: u32,
    /// The address itself, with the length of its prefix.
    pub network: IpNetwork,
    pub scope: AddressScope,
    pub flags: AddressFlags,
}

impl Address {
    /// IPv6 only: duplicate address detection has not finished, so it cannot be used as a source.
    pub fn is_tentative(&self) -> bool {
        self.flags.contains(AddressFlags::Tentative)
    }

    /// IPv6 only: somebody else on the link has it.
    pub fn is_duplicate(&self) -> bool {
        self.flags.contains(AddressFlags::Dadfailed)
    }
}

/// An address to add.
#[derive(Debug, Clone, Copy)]
pub struct NewAddress {
    pub link: u32,
    pub network: IpNetwork,
    pub flags: AddressFlags,
}

impl NewAddress {
    /// Without flags.
    pub fn new(link: u32, network: IpNetwork) -> Self {
        Self { link, network, flags: AddressFlags::empty() }
    }
}

impl Netlink {
    /// The addresses of one link, or of all.
    ///
    /// # Errors
    /// When the dump fails.
    pub async fn addresses(&self, link: Option<u32>) -> Result<Vec<Address>, Error> {
        let mut request = self.handle.address().get();
        if let Some(index) = link {
            request = request.set_link_index_filter(index);
        }
        let found = request.execute().try_filter_map(|message| async move { Ok(parse(&message)) });
        answer("list", "addresses", found.try_collect()).await
    }

    /// Adds an address.
    ///
    /// # Errors
    /// `EEXIST` when the link has it.
    pub async fn add_address(&self, new: &NewAddress) -> Result<(), Error> {
        let mut request = self.handle.address().add(new.link, new.network.ip(), new.network.prefix());
        if !new.flags.is_empty() {
            request.message_mut().attributes.push(AddressAttribute::Flags(new.flags));
        }
        let object = format!("{} to link index {}", new.network, new.link);
        answer("add address", object, request.execute()).await
    }

    /// Deletes an address.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` when the link does not have it: see [`Error::is_gone`].
    pub async fn del_address(&self, link: u32, network: IpNetwork) -> Result<(), Error> {
        let message = self.handle.address().add(link, network.ip(), network.prefix()).message_mut().clone();
        let object = format!("{network} of link index {link}");
        answer("delete address", object, self.handle.address().del(message).execute()).await
    }
}

/// None when the message carries no address that fits its prefix length.
pub(super) fn parse(message: &AddressMessage) -> Option<Address> {
    let mut local: Option<IpAddr> = None;
    let mut address: Option<IpAddr> = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let network = IpNetwork::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some(Address { link: message.header.index, network, scope: message.header.scope, flags })
}
