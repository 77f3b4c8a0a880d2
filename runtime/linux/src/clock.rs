//! The clock that counts from the boot of the host.

use rustix::time::{ClockId, clock_gettime};

use crate::Error;

/// Seconds since the host was booted, with those in which it was suspended (`CLOCK_BOOTTIME`). Nobody sets this clock.
pub fn since_boot() -> u64 {
    clock_gettime(ClockId::Boottime).tv_sec.cast_unsigned()
}

/// What names this boot of the host: times of another one mean nothing.
///
/// # Errors
/// /proc is not there.
pub fn boot_id() -> Result<String, Error> {
    const FILE: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(FILE).map_err(|error| Error::new("read", FILE, error))?;
    Ok(text.trim().to_owned())
}
