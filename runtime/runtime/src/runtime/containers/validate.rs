//! What of a container's configuration can be wrong on every machine. Pure; refuses before anything is made.

use std::path::Path;

use super::invalid;
use crate::container::{ContainerConfig, MountPropagation};
use crate::error::Error;

/// Checks fields whose meaning does not depend on the machine.
pub(crate) fn validate(config: &ContainerConfig) -> Result<(), Error> {
    if config.name.is_empty() {
        return Err(invalid("metadata.name", "is empty"));
    }
    for mount in &config.mounts {
        if !mount.container_path.starts_with('/') || !mount.host_path.is_absolute() {
            return Err(invalid("mounts", format!("\"{}\" needs absolute paths", mount.container_path)));
        }
        let recursive = mount.recursive_read_only;
        if recursive && (!mount.readonly || mount.propagation != MountPropagation::Private) {
            return Err(invalid("mounts", "recursive_read_only needs readonly and private propagation"));
        }
    }
    let escapes =
        Path::new(&config.log_path).components().any(|part| !matches!(part, std::path::Component::Normal(_)));
    if escapes {
        return Err(invalid("log_path", format!("\"{}\" leads out of the log directory", config.log_path)));
    }
    for device in &config.devices {
        let letters = device.permissions.chars().all(|letter| "rwm".contains(letter));
        if !device.container_path.starts_with("/dev/") || !letters {
            let reason =
                format!("\"{}\" is not below /dev, or its permissions are not of rwm", device.container_path);
            return Err(invalid("devices", reason));
        }
    }
    if !config.stop_signal.is_empty() && signal_number(&config.stop_signal).is_none() {
        return Err(invalid("stop_signal", format!("\"{}\" is not a signal", config.stop_signal)));
    }
    if let Some((key, _)) = config.env.iter().find(|(key, _)| key.is_empty() || key.contains('=')) {
        return Err(invalid("env", format!("\"{key}\" is not a variable's name")));
    }
    Ok(())
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`
pub(crate) fn signal_number(text: &str) -> Option<i32> {
    use rustix::process::Signal;
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let offset = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    let signal = match name {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "ABRT" => Signal::ABORT,
        "KILL" => Signal::KILL,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "PIPE" => Signal::PIPE,
        "ALRM" => Signal::ALARM,
        "TERM" => Signal::TERM,
        "CONT" => Signal::CONT,
        "STOP" => Signal::STOP,
        "TSTP" => Signal::TSTP,
        "WINCH" => Signal::WINCH,
        "PWR" => Signal::POWER,
        _ => return None,
    };
    Some(signal.as_raw())
}
