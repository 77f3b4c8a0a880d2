//! Query parameters of the kubelet API, as the API server and its clients spell them. Pure.
//!
//! Streams have two spellings: the API's (`stdin`, `stdout`, `stderr`) and the kubelet's (`input`, `output`, `error`). Both
//! are understood.

use jiff::Timestamp;

#[cfg(test)]
mod tests;

/// Ports of one port-forward request.
const MAX_PORTS: usize = 16;

/// Where a container wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Which part of a log is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub since: Option<Timestamp>,
    pub limit_bytes: Option<u64>,
    /// None: both.
    pub stream: Option<Stream>,
}

/// What an exec or attach wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StreamOptions {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A parameter that cannot be used; the text goes to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    form_urlencoded::parse(query.as_bytes()).map(|(key, value)| (key.into_owned(), value.into_owned()))
}

/// `now` turns `sinceSeconds` into a time.
pub fn log_options(query: &str, now: Timestamp) -> Result<LogOptions, Invalid> {
    let mut options = LogOptions::default();
    for (key, value) in pairs(query).filter(|(_, value)| !value.is_empty()) {
        match key.as_str() {
            "follow" => options.follow = truth(&value),
            "previous" => options.previous = truth(&value),
            "timestamps" => options.timestamps = truth(&value),
            "tailLines" => options.tail_lines = Some(count(&key, &value, 0)?),
            "limitBytes" => options.limit_bytes = Some(count(&key, &value, 1)?),
            "sinceSeconds" => options.since = Some(ago(now, count(&key, &value, 1)?)),
            "sinceTime" => options.since = Some(time(&key, &value)?),
            "stream" => options.stream = stream(&value)?,
            // A newer client's parameter changes nothing here, as with the kubelet.
            _ => {}
        }
    }
    if options.tail_lines.is_some() && options.stream.is_some() {
        return Err(Invalid(
            "tailLines: `tailLines` and specific `stream` are mutually exclusive for now".into(),
        ));
    }
    Ok(options)
}

pub fn stream_options(query: &str) -> Result<StreamOptions, Invalid> {
    let mut options = StreamOptions::default();
    for (key, value) in pairs(query) {
        match key.as_str() {
            "command" => options.command.push(value),
            "input" | "stdin" => options.stdin = truth(&value),
            "output" | "stdout" => options.stdout = truth(&value),
            "error" | "stderr" => options.stderr = truth(&value),
            "tty" => options.tty = truth(&value),
            _ => {}
        }
    }
    // A terminal has one stream for both.
    options.stderr &= !options.tty;
    if options.stdin || options.stdout || options.stderr {
        Ok(options)
    } else {
        Err(Invalid("you must specify at least 1 of stdin, stdout, stderr".into()))
    }
}

/// `port=80&port=81` or `ports=80,81`.
pub fn ports(query: &str) -> Result<Vec<u16>, Invalid> {
    let mut ports = Vec::new();
    for (_, value) in pairs(query).filter(|(key, _)| key == "port" || key == "ports") {
        for text in value.split(',') {
            let port = text.trim().parse::<u16>().ok().filter(|port| *port != 0);
            ports.push(port.ok_or_else(|| Invalid(format!("unable to parse \"{text}\" as a port")))?);
        }
    }
    match ports.len() {
        0 => Err(Invalid("query parameter \"port\" is required".into())),
        1..=MAX_PORTS => Ok(ports),
        many => Err(Invalid(format!("{many} ports, at most {MAX_PORTS} can be forwarded at once"))),
    }
}

fn truth(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

fn count(key: &str, value: &str, least: u64) -> Result<u64, Invalid> {
    let number = value.parse::<u64>().ok().filter(|number| *number >= least);
    number.ok_or_else(|| {
        Invalid(format!("{key}: Invalid value: \"{value}\": must be a number from {least} on"))
    })
}

fn time(key: &str, value: &str) -> Result<Timestamp, Invalid> {
    value.parse().map_err(|_| Invalid(format!("{key}: Invalid value: \"{value}\": must be an RFC 3339 time")))
}

/// A time before the beginning of time is the beginning of time.
fn ago(now: Timestamp, seconds: u64) -> Timestamp {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Timestamp::from_second(now.as_second().saturating_sub(seconds)).unwrap_or(Timestamp::MIN)
}

fn stream(value: &str) -> Result<Option<Stream>, Invalid> {
    match value {
        "All" => Ok(None),
        "Stdout" => Ok(Some(Stream::Stdout)),
        "Stderr" => Ok(Some(Stream::Stderr)),
        _ => Err(Invalid(format!(
            "stream: Unsupported value: \"{value}\": supported values: \"All\", \"Stderr\", \"Stdout\""
        ))),
    }
}
