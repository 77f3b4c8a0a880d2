//! Routes: list, add, replace, delete.
//!
//! Owns the translation between route messages and [`Route`]. A route with several hops is
//! listed once for each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop,
            RouteNextHopFlags, RouteProtocol, RouteScope, RouteType,
        },
    },
};

use super::{Error, Netlink, answer, exchange};

/// `RT_TABLE_MAIN`.
pub const MAIN_TABLE: u32 = 254;
const RT_PROTOCOL_BOOT: u8 = 3;

/// A unicast route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Prefix length 0 is the default route.
    pub destination: IpNetwork,
    pub gateway: Option<IpAddr>,
    /// Index of the link to leave by.
    pub link: Option<u32>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    pub table: u32,
    /// `rtm_scope`: 0 universe, 253 link, 254 host.
    pub scope: u8,
    /// `rtm_protocol`: who made it; 2 kernel, 3 boot, 4 static.
    pub protocol: u8,
    /// Metric; lower wins.
    pub priority: Option<u32>,
    pub mtu: Option<u32>,
    pub advmss: Option<u32>,
    /// The gateway is reachable through the link though no address says so.
    pub onlink: bool,
    /// One hop of an IPv4 route with several, which goes as a whole or not at all. Those of IPv6 come and go one by one.
    pub inseparable: bool,
}

impl Route {
    /// A route of the main table, scope universe, protocol boot, as other CNI plugins make them.
    pub fn to(destination: IpNetwork) -> Self {
        Self {
            destination,
            gateway: None,
            link: None,
            source: None,
            table: MAIN_TABLE,
            scope: 0,
            protocol: RT_PROTOCOL_BOOT,
            priority: None,
            mtu: None,
            advmss: None,
            onlink: false,
            inseparable: false,
        }
    }

    /// Whether one of both takes the other's place, unless it is added beside it.
    pub fn is_beside(&self, other: &Self) -> bool {
        (self.destination, self.table, self.priority) == (other.destination, other.table, other.priority)
    }
}

impl Netlink {
    /// The unicast routes of both families and all tables but `local`, one for each hop.
    ///
    /// # Errors
    /// When a dump fails.
    pub async fn routes(&self) -> Result<Vec<Route>, Error> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            let request = self.handle.route().get(filter);
            let found: Vec<RouteMessage> = answer("list", "routes", request.execute().try_collect()).await?;
            all.extend(found.iter().flat_map(parse));
        }
        Ok(all)
    }

    /// Adds a route.
    ///
    /// # Errors
    /// `EEXIST` when there is one with this destination, table and priority; `ENETUNREACH` when the gateway is not on
    /// a connected network.
    pub async fn add_route(&self, route: &Route) -> Result<(), Error> {
        let request = self.handle.route().add(message(route));
        answer("add route", describe(route), request.execute()).await
    }

    /// Adds a route beside those to the same destination: the first choice for IPv4, one more hop for IPv6.
    ///
    /// # Errors
    /// `EEXIST` when there is the same route; otherwise as [`Netlink::add_route`].
    pub async fn add_route_beside(&self, route: &Route) -> Result<(), Error> {
        self.create_route(route, 0).await
    }

    /// Adds a route after those to the same destination: the last choice for IPv4, one more hop for IPv6.
    ///
    /// # Errors
    /// As [`Netlink::add_route_beside`].
    pub async fn append_route(&self, route: &Route) -> Result<(), Error> {
        self.create_route(route, NLM_F_APPEND).await
    }

    async fn create_route(&self, route: &Route, place: u16) -> Result<(), Error> {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | place;
        let request = exchange(&self.handle, RouteNetlinkMessage::NewRoute(message(route)), flags);
        answer("add route", describe(route), request).await.map(drop)
    }

    /// Adds a route, in place of one with the same destination, table and priority.
    ///
    /// # Errors
    /// As [`Netlink::add_route`], without `EEXIST`.
    pub async fn replace_route(&self, route: &Route) -> Result<(), Error> {
        let request = self.handle.route().add(message(route)).replace();
        answer("replace route", describe(route), request.execute()).await
    }

    /// Deletes a route.
    ///
    /// # Errors
    /// `ESRCH` when there is none: see [`Error::is_gone`].
    pub async fn del_route(&self, route: &Route) -> Result<(), Error> {
        let request = self.handle.route().del(message(route));
        answer("delete route", describe(route), request.execute()).await
    }
}

fn describe(route: &Route) -> String {
    let mut text = route.destination.to_string();
    if let Some(gateway) = route.gateway {
        text.push_str(&format!(" via {gateway}"));
    }
    if let Some(link) = route.link {
        text.push_str(&format!(" dev index {link}"));
    }
    text
}

fn message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match route.destination {
        IpNetwork::V4(_) => AddressFamily::Inet,
        IpNetwork::V6(_) => AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = route.destination.prefix();
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.scope = RouteScope::from(route.scope);
    message.header.kind = RouteType::Unicast;
    if route.onlink {
        message.header.flags.insert(RouteFlags::Onlink);
    }
    match u8::try_from(route.table) {
        Ok(table) => message.header.table = table,
        Err(_) => message.attributes.push(RouteAttribute::Table(route.table)),
    }
    if route.destination.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    }
    if let Some(gateway) = route.gateway {
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(link) = route.link {
        message.attributes.push(RouteAttribute::Oif(link));
    }
    if let Some(priority) = route.priority {
        message.attributes.push(RouteAttribute::Priority(priority));
    }
    let metrics: Vec<RouteMetric> = [route.mtu.map(RouteMetric::Mtu), route.advmss.map(RouteMetric::Advmss)]
        .into_iter()
        .flatten()
        .collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// One for each hop; none for a route that is not unicast, or whose destination does not fit its family.
pub(super) fn parse(message: &RouteMessage) -> Vec<Route> {
    let Some(route) = parse_shared(message) else { return Vec::new() };
    let hops = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    match hops {
        Some(hops) => hops.iter().map(|hop| parse_hop(&route, hop)).collect(),
        None => vec![route],
    }
}

fn parse_hop(route: &Route, hop: &RouteNextHop) -> Route {
    let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        _ => None,
    });
    Route {
        gateway,
        link: Some(hop.interface_index),
        onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
        inseparable: route.destination.is_ipv4(),
        ..route.clone()
    }
}

/// What the message says of all hops, or of its only one.
fn parse_shared(message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut destination = unspecified;
    let mut route = Route::to(IpNetwork::from(unspecified));
    route.table = u32::from(message.header.table);
    route.scope = u8::from(message.header.scope);
    route.protocol = u8::from(message.header.protocol);
    route.onlink = message.header.flags.contains(RouteFlags::Onlink);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Oif(link) => route.link = Some(*link),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(priority) => route.priority = Some(*priority),
            RouteAttribute::Metrics(metrics) => parse_metrics(metrics, &mut route),
            _ => {}
        }
    }
    route.destination = IpNetwork::new(destination, message.header.destination_prefix_length).ok()?;
    Some(route)
}

fn parse_metrics(metrics: &[RouteMetric], route: &mut Route) {
    for metric in metrics {
        match metric {
            RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
            RouteMetric::Advmss(advmss) => route.advmss = Some(*advmss),
            _ => {}
        }
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}
