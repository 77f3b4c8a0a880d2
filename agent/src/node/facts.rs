//! What the machine says about itself: processors, memory, disk, huge pages, names of its parts.
//!
//! Reads /proc, /sys and /etc. Never fails: what cannot be read is zero or empty, and is then reported so.

use std::fs;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use nix::sys::utsname::uname;

/// The facts at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Online processors.
    pub cpus: u64,
    pub memory_bytes: u64,
    /// Size of the file system that holds pods and images.
    pub disk_bytes: u64,
    /// Page size and reserved bytes, both in bytes.
    pub hugepages: Vec<(u64, u64)>,
    pub kernel_version: String,
    /// As Go names it: `amd64`, `arm64`.
    pub architecture: String,
    pub os_image: String,
    pub machine_id: String,
    pub boot_id: String,
    pub system_uuid: String,
}

impl Facts {
    /// Reads everything; `root` is a path on the file system that pods and images are on.
    pub fn read(root: &Path) -> Self {
        let machine_id = first_line(&["/etc/machine-id", "/var/lib/dbus/machine-id"]);
        let uuid = first_line(&["/sys/class/dmi/id/product_uuid", "/proc/device-tree/vm,uuid"]);
        let (kernel_version, machine) = names();
        Self {
            cpus: cpus(),
            memory_bytes: machine_memory(),
            disk_bytes: statvfs(root).map_or(0, |fs| fs.blocks().saturating_mul(fs.fragment_size())),
            hugepages: hugepages(Path::new("/sys/kernel/mm/hugepages")),
            kernel_version,
            architecture: architecture(&machine).to_owned(),
            os_image: os_image(&read("/etc/os-release")),
            boot_id: first_line(&["/proc/sys/kernel/random/boot_id"]),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
        }
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn first_line(paths: &[&str]) -> String {
    let lines = paths.iter().map(|path| read(path).lines().next().unwrap_or_default().trim().to_owned());
    lines.into_iter().find(|line| !line.is_empty()).unwrap_or_default()
}

fn names() -> (String, String) {
    let Ok(names) = uname() else { return Default::default() };
    (names.release().to_string_lossy().into_owned(), names.machine().to_string_lossy().into_owned())
}

fn cpus() -> u64 {
    let listed = count_list(read("/sys/devices/system/cpu/online").trim());
    listed.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |count| count.get() as u64))
}

/// How many numbers a kernel list such as `0-3,8` names.
pub(super) fn count_list(text: &str) -> Option<u64> {
    let count = |range: &str| -> Option<u64> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.checked_sub(first)? + 1)
    };
    text.split(',').map(count).sum()
}

/// Bytes of memory of the machine.
pub fn machine_memory() -> u64 {
    memory(&read("/proc/meminfo"))
}

/// MemTotal of /proc/meminfo, which counts in KiB.
pub(super) fn memory(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

fn hugepages(dir: &Path) -> Vec<(u64, u64)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut pages: Vec<(u64, u64)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()? * 1024;
            let count = read(entry.path().join("nr_hugepages")).trim().parse::<u64>().ok()?;
            Some((size, count.saturating_mul(size)))
        })
        .collect();
    pages.sort_unstable();
    pages
}

/// PRETTY_NAME of os-release(5), without its quotes.
pub(super) fn os_image(os_release: &str) -> String {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map(|value| value.trim().trim_matches(['"', '\'']).to_owned()).unwrap_or_else(|| "Linux".to_owned())
}

fn architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armv7l" | "armv6l" => "arm",
        "i686" | "i386" => "386",
        other => other,
    }
}
