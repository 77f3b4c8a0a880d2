//! Properties of a link that can be set and restored. Pure.

use cni::{
    ErrorReply,
    json::{JsonError, Object},
};
use linux::netlink::{Link, LinkChange, MacAddress};
use serde_json::{Map, Value, json};

use crate::verify::different;

/// None leaves a property as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Properties {
    pub(super) mac: Option<MacAddress>,
    pub(super) promiscuous: Option<bool>,
    pub(super) mtu: Option<u32>,
    pub(super) all_multicast: Option<bool>,
    pub(super) tx_queue_len: Option<u32>,
}

impl Properties {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What the link has of the properties that are set here.
    pub(super) fn same_of(&self, link: &Link) -> Self {
        Self {
            mac: self.mac.and(link.mac),
            promiscuous: self.promiscuous.map(|_| link.promiscuity > 0),
            mtu: self.mtu.map(|_| link.mtu),
            all_multicast: self.all_multicast.map(|_| link.all_multicast),
            tx_queue_len: self.tx_queue_len.map(|_| link.tx_queue_len),
        }
    }

    /// These, and for what is not set here, `other`'s.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            mac: self.mac.or(other.mac),
            promiscuous: self.promiscuous.or(other.promiscuous),
            mtu: self.mtu.or(other.mtu),
            all_multicast: self.all_multicast.or(other.all_multicast),
            tx_queue_len: self.tx_queue_len.or(other.tx_queue_len),
        }
    }

    /// One change for each, so that a refusal says which.
    pub(super) fn changes(&self) -> Vec<(&'static str, LinkChange<'static>)> {
        let none = LinkChange::default;
        let changes = [
            self.mac.map(|mac| ("MAC address", LinkChange { mac: Some(mac), ..none() })),
            self.promiscuous.map(|on| ("promiscuous mode", LinkChange { promiscuous: Some(on), ..none() })),
            self.mtu.map(|mtu| ("MTU", LinkChange { mtu: Some(mtu), ..none() })),
            self.all_multicast
                .map(|on| ("all-multicast mode", LinkChange { all_multicast: Some(on), ..none() })),
            self.tx_queue_len
                .map(|length| ("transmit queue length", LinkChange { tx_queue_len: Some(length), ..none() })),
        ];
        changes.into_iter().flatten().collect()
    }

    /// The first difference. A link that listens to everybody without being told to is one, too.
    pub(super) fn compare(&self, link: &Link) -> Result<(), ErrorReply> {
        let name = &link.name;
        let text = |mac: MacAddress| mac.to_string();
        let found_mac = link.mac.map(text).unwrap_or_default();
        let pairs = [
            self.mac.map(|mac| ("Ethernet", text(mac), found_mac)),
            Some((
                "promisc",
                self.promiscuous.unwrap_or(false).to_string(),
                (link.promiscuity > 0).to_string(),
            )),
            self.mtu.map(|mtu| ("MTU", mtu.to_string(), link.mtu.to_string())),
            self.all_multicast
                .map(|on| ("all-multicast mode", on.to_string(), link.all_multicast.to_string())),
            self.tx_queue_len
                .map(|length| ("Transmit Queue Length", length.to_string(), link.tx_queue_len.to_string())),
        ];
        match pairs.into_iter().flatten().find(|(_, wanted, found)| wanted != found) {
            None => Ok(()),
            Some((what, wanted, found)) => Err(different(format!(
                "Error: Tuning configured {what} of {name} is {wanted}, current value is {found}"
            ))),
        }
    }

    /// Reads them by the names that files and configurations have for them.
    pub(super) fn read(object: &Object<'_>) -> Result<Self, JsonError> {
        let mac = object.string("mac")?.filter(|mac| !mac.is_empty());
        let mac = mac.map(str::parse).transpose();
        Ok(Self {
            mac: mac.map_err(|error| JsonError::key(object.place_of("mac"), error))?,
            promiscuous: object.boolean("promisc")?,
            mtu: object.number::<u32>("mtu")?.filter(|mtu| *mtu > 0),
            all_multicast: object.boolean("allmulti")?,
            tx_queue_len: object.number("txQLen")?,
        })
    }

    pub(super) fn write(&self) -> Map<String, Value> {
        let values = [
            ("mac", self.mac.map(|mac| json!(mac.to_string()))),
            ("promisc", self.promiscuous.map(Value::from)),
            ("mtu", self.mtu.map(Value::from)),
            ("allmulti", self.all_multicast.map(Value::from)),
            ("txQLen", self.tx_queue_len.map(Value::from)),
        ];
        values.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}
