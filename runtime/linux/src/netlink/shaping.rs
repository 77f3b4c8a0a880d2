//! Limits of bandwidth: token buckets (`tbf`) at the root of a link, and what comes in at a link sent through another (`ifb`),
//! since only what leaves a link can be queued.
//!
//! Owns the translation between traffic control messages and [`TokenBucket`]. Rates are bytes a second.

use futures::TryStreamExt;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, Nla, NlasIterator},
    packet_route::{
        RouteNetlinkMessage,
        link::InfoKind,
        tc::{TcAttribute, TcHandle, TcMessage, TcOption},
    },
};

use super::{Error, Netlink, answer};

const TBF: &str = "tbf";
/// Where [`Netlink::add_token_bucket`] puts its queue: `1:`.
const BUCKET: TcHandle = TcHandle { major: 1, minor: 0 };
/// Where the ingress qdisc always is: `ffff:`.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// The kernel's clock of packet schedulers: 64 ns a tick (`PSCHED_SHIFT`).
const TICKS_PER_MICROSECOND: f64 = 1000.0 / 64.0;
const MICROSECONDS_PER_SECOND: f64 = 1e6;
/// `TCA_TBF_PARMS`, a `struct tc_tbf_qopt`: rate and peak rate (12 bytes each), limit, buffer, MTU.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const PARMS_LEN: usize = 36;

/// A queue that lets through `rate`, and a burst that was saved up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may wait before more is dropped.
    pub limit: u32,
    /// The burst, as the time that it takes at this rate, in the kernel's ticks.
    pub buffer: u32,
}

impl TokenBucket {
    /// Of a rate in bytes a second, a burst in bytes, and the time that a packet may wait in microseconds. None for a rate of 0.
    pub fn new(rate: u64, burst: u32, latency: u32) -> Option<Self> {
        if rate == 0 {
            return None;
        }
        // Rounded down step by step, as other tools do it: the same limits look the same.
        let burst_time = (f64::from(burst) * MICROSECONDS_PER_SECOND / rate as f64) as u32;
        let waiting = (rate as f64 * f64::from(latency) / MICROSECONDS_PER_SECOND) as u32;
        Some(Self {
            rate,
            limit: waiting.saturating_add(burst),
            buffer: (f64::from(burst_time) * TICKS_PER_MICROSECOND) as u32,
        })
    }

    fn options(&self) -> Vec<TcOption> {
        let mut parms = vec![0; PARMS_LEN];
        let short = u32::try_from(self.rate).unwrap_or(u32::MAX);
        parms[8..12].copy_from_slice(&short.to_ne_bytes());
        parms[24..28].copy_from_slice(&self.limit.to_ne_bytes());
        parms[28..32].copy_from_slice(&self.buffer.to_ne_bytes());
        let mut options = vec![TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parms))];
        if self.rate > u64::from(u32::MAX) {
            let rate = self.rate.to_ne_bytes().to_vec();
            options.push(TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, rate)));
        }
        options
    }

    /// Of the attributes in `TCA_OPTIONS`.
    fn parse(options: &[u8]) -> Option<Self> {
        let value = |wanted: u16| {
            let mut attributes = NlasIterator::new(options).flatten();
            attributes
                .find(|attribute| attribute.kind() == wanted)
                .map(|attribute| attribute.value().to_vec())
        };
        let parms = value(TCA_TBF_PARMS)?;
        let word = |at: usize| Some(u32::from_ne_bytes(parms.get(at..at + 4)?.try_into().ok()?));
        let long = value(TCA_TBF_RATE64).and_then(|bytes| Some(u64::from_ne_bytes(bytes.try_into().ok()?)));
        Some(Self { rate: long.unwrap_or(u64::from(word(8)?)), limit: word(24)?, buffer: word(28)? })
    }
}

impl Netlink {
    /// Creates an intermediate functional block, down: a queue that it is given then costs no grace period.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken.
    pub async fn add_ifb(&self, name: &str, mtu: u32, group: u32) -> Result<(), Error> {
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Ifb)
            .name(name.to_owned())
            .mtu(mtu)
            .link_group(group)
            // It is not for a queue of its own, but for the one that it is given.
            .txqueuelen(0);
        answer("add ifb", format!("{name:?}"), self.handle.link().add(message.build()).execute()).await
    }

    /// Queues all that leaves the link in a token bucket, in place of the queue that it has by itself.
    ///
    /// # Errors
    /// `EEXIST` when somebody gave it another root queue; `EINVAL` for a burst smaller than a packet.
    pub async fn add_token_bucket(&self, link: u32, bucket: &TokenBucket) -> Result<(), Error> {
        let mut message = qdisc(link, BUCKET, TcHandle::ROOT);
        message.attributes.push(TcAttribute::Kind(TBF.to_owned()));
        message.attributes.push(TcAttribute::Options(bucket.options()));
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        let request = self.acknowledged(message, NLM_F_CREATE | NLM_F_EXCL);
        answer("add token bucket to", format!("link index {link}"), request).await
    }

    /// Takes the link's own root queue away; the kernel then gives it its usual one.
    ///
    /// # Errors
    /// `ENOENT` or `EINVAL` when it has none.
    pub async fn del_token_bucket(&self, link: u32) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelQueueDiscipline(qdisc(link, BUCKET, TcHandle::ROOT));
        let request = self.acknowledged(message, 0);
        answer("delete token bucket of", format!("link index {link}"), request).await
    }

    /// The token bucket at the root of the link, if its root is one.
    ///
    /// # Errors
    /// When the dump fails.
    pub async fn token_bucket(&self, link: u32) -> Result<Option<TokenBucket>, Error> {
        let found = self.handle.qdisc().get().index(link.cast_signed()).execute();
        let found: Vec<TcMessage> = answer("list", "qdiscs", found.try_collect()).await?;
        let here = found.iter().filter(|message| message.header.index == link.cast_signed());
        Ok(here.filter_map(parse_bucket).next())
    }

    /// Makes the place for a filter of what comes in at a link.
    ///
    /// # Errors
    /// `EEXIST` when somebody else did (clsact or ingress).
    pub async fn add_ingress(&self, link: u32) -> Result<(), Error> {
        let add = self.handle.qdisc().add(link.cast_signed()).ingress().execute();
        answer("add ingress qdisc to", format!("link index {link}"), add).await
    }

    /// Sends all that comes in at one link out through another, once there is [the place](Netlink::add_ingress) for it.
    ///
    /// # Errors
    /// `ENODEV` when there is no such other link.
    pub async fn redirect_ingress(&self, from: u32, to: u32) -> Result<(), Error> {
        let object = || format!("what comes in at link index {from} to link index {to}");
        let filter = self
            .handle
            .traffic_filter(from.cast_signed())
            .add()
            .parent(INGRESS.into())
            .priority(1)
            .protocol((libc::ETH_P_ALL as u16).to_be())
            .redirect(to);
        match filter {
            Ok(filter) => answer("redirect", object(), filter.execute()).await,
            Err(error) => Err(super::failed("redirect", object())(error)),
        }
    }

    /// Undoes [`Netlink::add_ingress`]: the filter goes along.
    ///
    /// # Errors
    /// `ENOENT` or `EINVAL` when there is none.
    pub async fn del_ingress(&self, link: u32) -> Result<(), Error> {
        let message = qdisc(link, INGRESS, TcHandle::INGRESS);
        let request = self.acknowledged(RouteNetlinkMessage::DelQueueDiscipline(message), 0);
        answer("delete ingress qdisc of", format!("link index {link}"), request).await
    }
}

fn qdisc(link: u32, handle: TcHandle, parent: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(link.cast_signed());
    message.header.handle = handle;
    message.header.parent = parent;
    message
}

fn parse_bucket(message: &TcMessage) -> Option<TokenBucket> {
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    });
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        // The options of a kind that the library does not know are one attribute, as it came.
        TcAttribute::Options(options) => options.first(),
        _ => None,
    });
    match options {
        Some(TcOption::Other(raw)) if kind == Some(TBF) && message.header.parent == TcHandle::ROOT => {
            let mut bytes = vec![0; raw.value_len()];
            raw.emit_value(&mut bytes);
            TokenBucket::parse(&bytes)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
