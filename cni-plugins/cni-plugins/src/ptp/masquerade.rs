//! The one place for `ptp`'s masquerading, which is not there yet.
//!
//! To honour `ipMasq` and `ipMasqBackend`: read both here into the configuration instead of refusing them, set the rules
//! up as the last step of ADD from the addresses of its result, and take them down in DEL and GC.

use cni::{ErrorReply, code, json::Object};

use crate::plugin::decoding;

/// Refuses what would otherwise be ignored.
pub(super) fn refuse(root: &Object<'_>) -> Result<(), ErrorReply> {
    root.string("ipMasqBackend").map_err(decoding)?;
    if root.boolean("ipMasq").map_err(decoding)?.unwrap_or(false) {
        let reply = ErrorReply::new(code::UNSUPPORTED_FIELD, "unsupported field \"ipMasq\": true");
        return Err(reply.with_details("masquerading is not supported yet"));
    }
    Ok(())
}
