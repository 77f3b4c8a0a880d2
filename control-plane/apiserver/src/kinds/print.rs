//! Table columns and cells, per kind: upstream's printers (`pkg/printers/internalversion`).
//!
//! Input: an object and the time. Output: cells. Pure; an age is computed from the `now` it is given.

pub(super) mod network;
pub(super) mod node;
pub(super) mod pod;
pub(super) mod rbac;
pub(super) mod simple;
pub(super) mod workload;

use serde_json::Value;

use crate::object::{entries, name, text};

/// One column. Priority 1 is shown with `-o wide` only.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    pub kind: &'static str,
    pub format: &'static str,
    pub priority: i32,
    pub description: &'static str,
}

const fn column(name: &'static str, kind: &'static str) -> Column {
    Column { name, kind, format: "", priority: 0, description: "" }
}

const fn wide(name: &'static str, kind: &'static str) -> Column {
    Column { priority: 1, ..column(name, kind) }
}

const NAME: Column = Column { format: "name", ..column("Name", "string") };
const AGE: Column = column("Age", "string");

/// How far right a column belongs: 0 always shown.
pub fn priority_of(column: &Column) -> i32 {
    column.priority
}

pub(super) const NAME_AGE: &[Column] = &[NAME, AGE];

pub(super) fn name_age(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    vec![name(object).into(), age(object, now)]
}

fn age(object: &Value, now: jiff::Timestamp) -> Value {
    since(text(object, "/metadata/creationTimestamp"), now).into()
}

/// Time since a timestamp, for people; `<unknown>` when there is none.
fn since(timestamp: &str, now: jiff::Timestamp) -> String {
    match timestamp.parse::<jiff::Timestamp>() {
        Ok(then) => duration(now.as_second() - then.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// A duration in seconds as upstream's `HumanDuration` writes it.
fn duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s / DAY, "d", s % DAY / HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(s / YEAR, "y", s % YEAR / DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

/// Labels as `a=b,c=d`, or `<none>`.
fn labels(object: &Value, pointer: &str) -> String {
    let pairs: Vec<String> = entries(object, pointer).map(|(key, value)| format!("{key}={value}")).collect();
    or_none(pairs.join(","))
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    //! Ages.

    use super::*;

    #[test]
    fn durations_read_like_upstreams() {
        for (seconds, expected) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (700, "11m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (30 * 3600, "30h"),
            (50 * 3600, "2d2h"),
            (10 * 86400, "10d"),
            (3 * 365 * 86400, "3y"),
        ] {
            assert_eq!(duration(seconds), expected);
        }
    }
}
