//! Where the hardware address that the container's link is to have is asked for.

use cni::ErrorReply;
use linux::netlink::MacAddress;

use crate::plugin::{Request, decoding};

/// A place that an address may be in; each plugin looks in some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The configuration's own key `mac`.
    Config,
    /// `MAC` in `CNI_ARGS`.
    Environment,
    /// `args.cni.mac`.
    Args,
    /// `runtimeConfig.mac`.
    Runtime,
}

/// The address of the last of these places that has one.
pub(crate) fn wanted(request: &Request, sources: &[Source]) -> Result<Option<MacAddress>, ErrorReply> {
    let mut wanted = None;
    for source in sources {
        wanted = found(request, *source)?.or(wanted);
    }
    wanted.map(|text| text.parse().map_err(ErrorReply::config)).transpose()
}

fn found(request: &Request, source: Source) -> Result<Option<String>, ErrorReply> {
    let root = request.root();
    let parent = match source {
        Source::Environment => {
            let args = request.args(&["MAC"])?;
            return Ok(args.get("MAC").filter(|mac| !mac.is_empty()).map(str::to_owned));
        }
        Source::Config => Some(root),
        Source::Args => root.cni_args().map_err(decoding)?,
        Source::Runtime => root.object("runtimeConfig").map_err(decoding)?,
    };
    let Some(parent) = parent else { return Ok(None) };
    let mac = parent.string("mac").map_err(decoding)?;
    Ok(mac.filter(|mac| !mac.is_empty()).map(str::to_owned))
}
