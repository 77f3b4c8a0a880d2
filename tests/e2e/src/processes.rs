//! The processes of pods as the kernel has them, whatever the API says.

use std::fs;

#[cfg(test)]
mod tests;

/// Pid and start time (in clock ticks after boot) of a pod's oldest process; together they name it for ever.
pub fn first_of_pod(uid: &str) -> Option<(i32, u64)> {
    let group = format!("/pod{uid}");
    let all = fs::read_dir("/proc").expect("read /proc").flatten().filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let cgroup = fs::read_to_string(entry.path().join("cgroup")).ok()?;
        is_below(&cgroup, &group).then_some(())?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        Some((pid, start_time(&stat)?))
    });
    all.min_by_key(|(pid, started)| (*started, *pid))
}

/// The processes whose cgroup's path contains `group`.
pub fn in_group(group: &str) -> Vec<i32> {
    let all = fs::read_dir("/proc").expect("read /proc").flatten();
    all.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let cgroup = fs::read_to_string(entry.path().join("cgroup")).ok()?;
        cgroup.contains(group).then_some(pid)
    })
    .collect()
}

/// Whether a process with this `cgroup` file is in a container of the group, not just in the group.
fn is_below(cgroup: &str, group: &str) -> bool {
    cgroup.lines().any(|line| line.split_once(group).is_some_and(|(_, rest)| rest.starts_with('/')))
}

/// The start time in a `stat` line, unless the process is a zombie.
fn start_time(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
