//! Attachments that are one link in the container: macvlan, ipvlan, vlan, dummy, host-device.
//!
//! Owns the verbs as far as these plugins share them. Such a link is in the container's namespace before its plugin can
//! be killed, by its name or by one that DEL knows too, and GC has only IPAM's leases to collect.

use cni::{AddResult, ErrorReply, exec::Verb};
use linux::netlink::{Link, Netlink};

use crate::{
    delegate,
    inside::{self, Inside, Switch},
    made::Made,
    plugin::{Request, block_on},
    stacked::interim_name,
    verify,
};

/// Place of the link in the result.
const POSITION: usize = 0;

/// ADD, once the link is made: addresses and routes of the IPAM plugin; without one the link is only set up.
pub(crate) async fn address<'a>(
    made: &mut Made<'a>,
    inside: &Inside<'_>,
    ipam: Option<&'a str>,
    switches: &[Switch],
) -> Result<AddResult, ErrorReply> {
    let given = match ipam {
        Some(ipam) => {
            let given = made.addresses(ipam, POSITION).await?;
            inside.configure(&given, switches).await?;
            given
        }
        None => {
            inside.set_up().await?;
            AddResult::default()
        }
    };
    Ok(AddResult { interfaces: vec![inside.interface()], ..given })
}

/// As [`address`], with addresses and routes that a plugin before this one got.
pub(crate) async fn adopt(
    inside: &Inside<'_>,
    mut given: AddResult,
    switches: &[Switch],
) -> Result<AddResult, ErrorReply> {
    for ip in &mut given.ips {
        ip.interface = Some(POSITION);
    }
    inside.configure(&given, switches).await?;
    Ok(AddResult { interfaces: vec![inside.interface()], ..given })
}

/// DEL.
pub(crate) fn del(request: &Request) -> Result<(), ErrorReply> {
    let ipam = delegate::ipam_type(request)?;
    let remove_link = async {
        let Some(netns) = request.existing_netns()? else { return Ok(()) };
        let named = inside::delete(&netns, &request.ifname).await;
        ErrorReply::first_of([named, inside::delete(&netns, &interim_name(request)).await])
    };
    block_on(delegate::detach(request, ipam.as_deref(), remove_link))
}

pub(crate) fn gc(request: &Request) -> Result<(), ErrorReply> {
    // Without the list nothing is collected.
    request.valid_attachments()?;
    let ipam = delegate::ipam_type(request)?;
    block_on(delegate::run_if_any(request, ipam.as_deref(), Verb::Gc))
}

/// What a plugin's CHECK has of its own.
pub(crate) struct Check<'a, F> {
    /// Kind of the link; none for any.
    pub(crate) kind: Option<&'a str>,
    /// Said where the configuration has no `prevResult`.
    pub(crate) no_prev_result: &'a str,
    /// Compares the link, once it is known to be there.
    pub(crate) compare: F,
}

/// CHECK: what IPAM says, then the link, its addresses and its routes.
pub(crate) async fn check<F: Fn(&Link) -> Result<(), ErrorReply>>(
    request: &Request,
    check: &Check<'_, F>,
) -> Result<(), ErrorReply> {
    let ipam = delegate::ipam_type(request)?;
    let netns = request.open_netns()?;
    delegate::run_if_any(request, ipam.as_deref(), Verb::Check).await?;
    let expected = request.required_prev_result(check.no_prev_result)?;
    let netlink = Netlink::open_in(&netns).map_err(ErrorReply::internal)?;
    let link = verify::inside(&netlink, request, &expected, check.kind).await?;
    (check.compare)(&link)?;
    verify::addresses(&netlink, &expected, &link).await?;
    verify::routes(&netlink, &expected, &link).await
}
