//! Traffic control on the way into and out of a link: the clsact qdisc, and BPF programs that run there as direct-action
//! filters.
//!
//! Owns the translation between traffic control messages and [`Filter`]. Such a program has no link object and no pin: it
//! stays until somebody removes the filter, the qdisc or the network link, and whoever is to find it again goes by its name
//! and priority.

use std::os::fd::{AsRawFd, BorrowedFd};

use futures::TryStreamExt;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};

use super::{Error, Netlink, answer, exchange};

/// The handle of clsact and ingress qdiscs (`TC_H_CLSACT` with no minor number).
const CLASSIFIERS: TcHandle = TcHandle { major: 0xffff, minor: 0 };
const CLSACT: &str = "clsact";
/// Filters are for packets of every protocol.
const PROTOCOL: u16 = (libc::ETH_P_ALL as u16).to_be();

/// Which packets of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    fn parent(self) -> TcHandle {
        let minor = match self {
            Direction::Ingress => TcHandle::MIN_INGRESS,
            Direction::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { major: 0xffff, minor }
    }

    fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

/// What stands at the place of a link's classifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Classifiers {
    Clsact,
    /// The older qdisc, for what comes in alone. A link has one of the two.
    Ingress,
}

/// A place for a BPF filter. The lower the priority, the earlier it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterPlace {
    /// The link's index.
    pub link: u32,
    pub direction: Direction,
    pub priority: u16,
    /// Shown with the filter; at most 255 bytes.
    pub name: String,
}

impl FilterPlace {
    fn shown(&self) -> String {
        format!("\"{}\" at {} of link index {}", self.name, self.direction.name(), self.link)
    }
}

/// A filter as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub link: u32,
    pub direction: Direction,
    pub priority: u16,
    /// 0 for the kernel's own entry of a priority that is in use.
    pub handle: u32,
    /// BPF filters alone.
    pub name: Option<String>,
    /// The id of the program that it runs, of BPF filters alone.
    pub program: Option<u32>,
}

impl Netlink {
    /// The links that can have classifiers, with what they have for them.
    ///
    /// # Errors
    /// When the dump fails.
    pub async fn classifiers(&self) -> Result<Vec<(u32, Classifiers)>, Error> {
        let found = self.handle.qdisc().get().execute();
        let found = found.try_filter_map(|message| async move { Ok(parse_qdisc(&message)) });
        answer("list", "qdiscs", found.try_collect()).await
    }

    /// Makes a link ready for filters in both directions.
    ///
    /// # Errors
    /// `EEXIST` when it has a clsact or an ingress qdisc.
    pub async fn add_clsact(&self, link: u32) -> Result<(), Error> {
        let mut message = clsact(link);
        message.attributes.push(TcAttribute::Kind(CLSACT.to_owned()));
        let request =
            self.acknowledged(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL);
        answer("add clsact to", format!("link index {link}"), request).await
    }

    /// Removes a link's clsact qdisc with all filters.
    ///
    /// # Errors
    /// `EINVAL` or `ENOENT` when it has none.
    pub async fn del_clsact(&self, link: u32) -> Result<(), Error> {
        let request = self.acknowledged(RouteNetlinkMessage::DelQueueDiscipline(clsact(link)), 0);
        answer("delete clsact of", format!("link index {link}"), request).await
    }

    /// The filters of one direction of a link, whoever made them.
    ///
    /// # Errors
    /// When the dump fails. A link without a qdisc for filters has none.
    pub async fn filters(&self, link: u32, direction: Direction) -> Result<Vec<Filter>, Error> {
        let request = self.handle.traffic_filter(link.cast_signed()).get();
        let request = match direction {
            Direction::Ingress => request.ingress(),
            Direction::Egress => request.egress(),
        };
        let found = request.execute().map_ok(|message| parse_filter(&message, direction));
        answer("list", format!("filters of link index {link}"), found.try_collect()).await
    }

    /// Adds a filter that runs `program` and acts on its verdict.
    ///
    /// # Errors
    /// `EINVAL` when the link has no clsact qdisc, or another kind of filter stands at the priority.
    pub async fn add_bpf_filter(&self, place: &FilterPlace, program: BorrowedFd<'_>) -> Result<(), Error> {
        let message = bpf_filter(place, 0, program);
        let request =
            self.acknowledged(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_EXCL);
        answer("add filter", place.shown(), request).await
    }

    /// Makes the filter `handle` at a place run another program. Every packet meets the old or the new one.
    ///
    /// # Errors
    /// `ENOENT` when it is gone.
    pub async fn replace_bpf_filter(
        &self,
        place: &FilterPlace,
        handle: u32,
        program: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let message = bpf_filter(place, handle, program);
        let request = self.acknowledged(RouteNetlinkMessage::NewTrafficFilter(message), 0);
        answer("replace filter", place.shown(), request).await
    }

    /// Removes one filter.
    ///
    /// # Errors
    /// `ENOENT` when it is gone; `EINVAL` when its qdisc is.
    pub async fn del_filter(&self, filter: &Filter) -> Result<(), Error> {
        let message = filter_message(filter.link, filter.direction, filter.priority, filter.handle);
        let request = self.acknowledged(RouteNetlinkMessage::DelTrafficFilter(message), 0);
        let object = format!(
            "priority {} at {} of link index {}",
            filter.priority,
            filter.direction.name(),
            filter.link
        );
        answer("delete filter", object, request).await
    }

    /// Sends a request that the kernel answers with yes or no.
    pub(super) async fn acknowledged(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), rtnetlink::Error> {
        exchange(&self.handle, message, NLM_F_REQUEST | NLM_F_ACK | flags).await.map(drop)
    }
}

fn clsact(link: u32) -> TcMessage {
    let mut message = TcMessage::with_index(link.cast_signed());
    message.header.handle = CLASSIFIERS;
    message.header.parent = TcHandle::CLSACT;
    message
}

fn filter_message(link: u32, direction: Direction, priority: u16, handle: u32) -> TcMessage {
    let mut message = TcMessage::with_index(link.cast_signed());
    message.header.parent = direction.parent();
    message.header.handle = handle.into();
    message.header.info = u32::from(priority) << 16 | u32::from(PROTOCOL);
    message
}

fn bpf_filter(place: &FilterPlace, handle: u32, program: BorrowedFd<'_>) -> TcMessage {
    let mut message = filter_message(place.link, place.direction, place.priority, handle);
    let options = [
        TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
        TcFilterBpfOption::ProgName(place.name.clone()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    message.attributes.push(TcAttribute::Options(options.map(TcOption::Bpf).to_vec()));
    message
}

/// None for a qdisc of another place.
pub(super) fn parse_qdisc(message: &TcMessage) -> Option<(u32, Classifiers)> {
    if message.header.handle != CLASSIFIERS {
        return None;
    }
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    });
    let kind = if kind == Some(CLSACT) { Classifiers::Clsact } else { Classifiers::Ingress };
    Some((message.header.index.cast_unsigned(), kind))
}

pub(super) fn parse_filter(message: &TcMessage, direction: Direction) -> Filter {
    let mut filter = Filter {
        link: message.header.index.cast_unsigned(),
        direction,
        priority: (message.header.info >> 16) as u16,
        handle: message.header.handle.into(),
        name: None,
        program: None,
    };
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name = Some(name.clone()),
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(*id),
                _ => {}
            }
        }
    }
    filter
}
