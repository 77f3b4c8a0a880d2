//! Numbers by which one network namespace knows another.

use std::os::fd::{AsRawFd, BorrowedFd};

use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_REQUEST},
    packet_route::{
        RouteNetlinkMessage,
        nsid::{NsidAttribute, NsidMessage},
    },
};

use super::{Error, Netlink, answer, exchange};

/// `NETNSA_NSID_NOT_ASSIGNED`, and in a request: any free number.
const NOT_ASSIGNED: i32 = -1;

impl Netlink {
    /// The number by which this socket's namespace knows another one. It is given one when it has none, as the kernel
    /// does by itself for the namespaces of links' parents and peers; it keeps it for good.
    ///
    /// # Errors
    /// When the descriptor is no namespace, or may not be named (`CAP_NET_ADMIN`).
    pub async fn netns_id(&self, netns: BorrowedFd<'_>) -> Result<i32, Error> {
        if let Some(id) = self.known_netns_id(netns).await? {
            return Ok(id);
        }
        let message = message(netns, Some(NOT_ASSIGNED));
        let request =
            exchange(&self.handle, RouteNetlinkMessage::NewNsId(message), NLM_F_REQUEST | NLM_F_ACK);
        match answer("number", "network namespace", request).await {
            // Somebody else had the same idea.
            Err(error) if error.is_exists() => {}
            numbered => drop(numbered?),
        }
        let id = self.known_netns_id(netns).await?;
        id.ok_or_else(|| Error::Protocol {
            operation: "number",
            object: "network namespace".to_owned(),
            detail: "the kernel gave no number".to_owned(),
        })
    }

    async fn known_netns_id(&self, netns: BorrowedFd<'_>) -> Result<Option<i32>, Error> {
        let request =
            exchange(&self.handle, RouteNetlinkMessage::GetNsId(message(netns, None)), NLM_F_REQUEST);
        let answers = answer("find number of", "network namespace", request).await?;
        let ids = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNsId(message) => Some(&message.attributes),
            _ => None,
        });
        Ok(ids.flatten().find_map(|attribute| match attribute {
            NsidAttribute::Id(id) if *id != NOT_ASSIGNED => Some(*id),
            _ => None,
        }))
    }
}

fn message(netns: BorrowedFd<'_>, id: Option<i32>) -> NsidMessage {
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(netns.as_raw_fd().cast_unsigned()));
    message.attributes.extend(id.map(NsidAttribute::Id));
    message
}
