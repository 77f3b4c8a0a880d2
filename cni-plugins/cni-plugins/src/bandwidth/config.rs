//! The configuration of `bandwidth`: rates and bursts in bits, each with the other or not at all.

use cni::{
    ErrorReply,
    json::{JsonError, Object},
};
use linux::netlink::TokenBucket;

use crate::plugin::{Request, decoding};

/// How long a packet may wait in a queue, in microseconds; the reference plugin's 25 ms.
const LATENCY: u32 = 25_000;
const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

/// A limit of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    /// Bytes a second.
    rate: u64,
    /// Bytes.
    burst: u32,
}

impl Limit {
    pub(super) fn bucket(&self) -> TokenBucket {
        let bucket = TokenBucket::new(self.rate, self.burst, LATENCY);
        bucket.unwrap_or(TokenBucket { rate: self.rate, limit: self.burst, buffer: 0 })
    }
}

/// What to limit. `ingress` is what goes into the container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Config {
    pub(super) ingress: Option<Limit>,
    pub(super) egress: Option<Limit>,
}

impl Config {
    /// The keys of the configuration itself win over the runtime's as a whole.
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        if KEYS.iter().any(|key| root.value(key).is_some()) {
            return Self::of(&root);
        }
        let runtime = root.object("runtimeConfig").map_err(decoding)?;
        let asked = runtime.map(|runtime| runtime.object("bandwidth")).transpose().map_err(decoding)?;
        asked.flatten().map_or_else(|| Ok(Self::default()), |asked| Self::of(&asked))
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn of(object: &Object<'_>) -> Result<Self, ErrorReply> {
        let [ingress, egress] = [("ingressRate", "ingressBurst"), ("egressRate", "egressBurst")]
            .map(|(rate, burst)| limit(object, rate, burst));
        Ok(Self { ingress: ingress?, egress: egress? })
    }
}

fn limit(object: &Object<'_>, rate_key: &str, burst_key: &str) -> Result<Option<Limit>, ErrorReply> {
    let bits =
        |key: &str| -> Result<u64, ErrorReply> { Ok(object.number(key).map_err(decoding)?.unwrap_or(0)) };
    let (rate, burst) = (bits(rate_key)?, bits(burst_key)?);
    match (rate, burst) {
        (0, 0) => return Ok(None),
        (_, 0) => return Err(ErrorReply::config("if rate is set, burst must also be set")),
        (0, _) => return Err(ErrorReply::config("if burst is set, rate must also be set")),
        _ => {}
    }
    let wrong = |key: &str, detail: &str| decoding(JsonError::key(object.place_of(key), detail));
    let burst = u32::try_from(burst / 8).ok().filter(|bytes| *bytes < u32::MAX);
    let burst = burst.ok_or_else(|| ErrorReply::config("burst cannot be more than 4GB"))?;
    if rate < 8 {
        return Err(wrong(rate_key, "expected at least 8 bits a second"));
    }
    Ok(Some(Limit { rate: rate / 8, burst }))
}

#[cfg(test)]
mod tests;
