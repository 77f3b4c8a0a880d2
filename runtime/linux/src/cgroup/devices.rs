//! Which devices a group may use: the v1 controller, or on v2 a BPF program of ours (`program` writes it, `attachment` puts it
//! there).
//!
//! Rules allow; what none of them names is refused. Nothing here knows which devices a container should have.

mod attachment;
mod program;

#[cfg(test)]
mod tests;

use super::{Group, write};
use crate::Error;

/// What kind of device a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Both.
    Any,
    /// Character devices.
    Character,
    /// Block devices.
    Block,
}

/// What a rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAccess {
    /// `r`
    pub read: bool,
    /// `w`
    pub write: bool,
    /// `m`
    pub mknod: bool,
}

impl DeviceAccess {
    /// Everything.
    pub const ALL: DeviceAccess = DeviceAccess { read: true, write: true, mknod: true };

    /// From letters `r`, `w`, `m`.
    pub fn parse(letters: &str) -> Option<DeviceAccess> {
        letters.chars().all(|letter| "rwm".contains(letter)).then(|| DeviceAccess {
            read: letters.contains('r'),
            write: letters.contains('w'),
            mknod: letters.contains('m'),
        })
    }

    fn letters(self) -> String {
        let pick = |wanted: bool, letter: &'static str| if wanted { letter } else { "" };
        format!("{}{}{}", pick(self.read, "r"), pick(self.write, "w"), pick(self.mknod, "m"))
    }

    /// BPF_DEVCG_ACC_MKNOD 1, READ 2, WRITE 4.
    fn bits(self) -> i32 {
        i32::from(self.mknod) | i32::from(self.read) << 1 | i32::from(self.write) << 2
    }
}

/// Allows one device, or several where a number is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Kind.
    pub kind: DeviceKind,
    /// Major number.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
    /// Access.
    pub access: DeviceAccess,
}

pub(super) fn restrict(group: &Group, rules: &[DeviceRule]) -> Result<(), Error> {
    if let Some(directory) = group.v1_directory("devices") {
        write(&directory.join("devices.deny"), "a")?;
        return rules.iter().try_for_each(|rule| write(&directory.join("devices.allow"), &v1_line(rule)));
    }
    let Some(directory) = group.unified_directory() else {
        let missing = std::io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        return Err(Error::new("restrict devices: no cgroup hierarchy can", group.path().display(), missing));
    };
    attachment::replace(&directory, &program::assemble(rules))
}

fn v1_line(rule: &DeviceRule) -> String {
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |value| value.to_string());
    let kind = match rule.kind {
        DeviceKind::Any => "a",
        DeviceKind::Character => "c",
        DeviceKind::Block => "b",
    };
    format!("{kind} {}:{} {}", number(rule.major), number(rule.minor), rule.access.letters())
}
