//! The flags of `dhcp daemon`, spelled as the reference's: `-name value` or `-name=value`, one hyphen or two. Pure.

use std::{path::PathBuf, time::Duration};

use super::{config::DEFAULT_SOCKET, exchange::Limits};

/// Until an address is given up: quick tries, and then pauses that grow.
const DEFAULT_ACQUIRE: Duration = Duration::from_secs(208);
const DEFAULT_WAIT: Duration = Duration::from_secs(10);
const NAMES: &str = "-pidfile, -hostprefix, -socketpath, -broadcast, -timeout, -resendmax, -resendtimeout";

/// What the daemon is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flags {
    pub(super) pid_file: Option<PathBuf>,
    /// Where the host's root is, for a daemon in a container.
    pub(super) host_prefix: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) broadcast: bool,
    pub(super) limits: Limits,
}

impl Flags {
    pub(super) fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut flags = Self {
            pid_file: None,
            host_prefix: PathBuf::new(),
            socket: PathBuf::from(DEFAULT_SOCKET),
            broadcast: false,
            limits: Limits { wait: DEFAULT_WAIT, acquire: DEFAULT_ACQUIRE },
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let unknown = || format!("unknown argument {argument:?}: expected {NAMES}");
            let name = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
            let name = name.ok_or_else(unknown)?;
            let (name, inline) =
                name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
            if name == "broadcast" {
                flags.broadcast = match inline {
                    None | Some("true" | "1") => true,
                    Some("false" | "0") => false,
                    Some(_) => return Err(format!("invalid value of {argument:?}: expected true or false")),
                };
                continue;
            }
            let mut value = || {
                let next = inline.or_else(|| arguments.next().map(String::as_str));
                next.ok_or_else(|| format!("argument {argument:?} lacks its value"))
            };
            match name {
                "pidfile" => flags.pid_file = Some(PathBuf::from(value()?)),
                "hostprefix" => flags.host_prefix = PathBuf::from(value()?),
                "socketpath" => flags.socket = PathBuf::from(value()?),
                "timeout" => flags.limits.wait = duration(value()?)?,
                // The longest pause between two questions is the longest wait for an answer.
                "resendmax" => flags.limits.wait = flags.limits.wait.min(duration(value()?)?),
                "resendtimeout" => flags.limits.acquire = duration(value()?)?,
                _ => return Err(unknown()),
            }
        }
        if flags.pid_file.as_deref().is_some_and(|path| !path.is_absolute()) {
            return Err("-pidfile: expected an absolute path".to_owned());
        }
        Ok(flags)
    }

    /// A path of the host, as this process sees it.
    pub(super) fn on_host(&self, path: &std::path::Path) -> PathBuf {
        if self.host_prefix.as_os_str().is_empty() {
            return path.to_owned();
        }
        self.host_prefix.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// As Go writes durations: `10s`, `1m30s`, `500ms`, `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("invalid duration {text:?}: expected one as 10s or 1m30s");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let number: u32 = rest[..digits].parse().map_err(|_| invalid())?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let one = match &rest[digits..unit] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(invalid()),
        };
        total += one * number;
        rest = &rest[unit..];
    }
    if total.is_zero() { Err(invalid()) } else { Ok(total) }
}

#[cfg(test)]
mod tests;
