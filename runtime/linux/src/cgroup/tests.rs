//! Layouts, path maths and file tables.

use super::events::kills_in;
use super::limits::v2_files;
use super::*;
use crate::mount::MountEntry;

fn entry(point: &str, filesystem: &str, options: &str) -> MountEntry {
    MountEntry {
        root: "/".into(),
        mount_point: point.into(),
        filesystem: filesystem.into(),
        super_options: options.into(),
    }
}

fn hybrid() -> Layout {
    let table = [
        entry("/sys/fs/cgroup", "tmpfs", "rw,mode=755"),
        entry("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
        entry("/sys/fs/cgroup/systemd", "cgroup", "rw,xattr,release_agent=/x,name=systemd"),
        entry("/sys/fs/cgroup/unified", "cgroup2", "rw,nsdelegate"),
        entry("/elsewhere/memory", "cgroup", "rw,memory"),
    ];
    Layout::from_table(Path::new("/sys/fs/cgroup"), &table)
}

#[test]
fn a_hybrid_machine_has_both() {
    let layout = hybrid();
    assert_eq!(layout.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
    let controllers: Vec<_> = layout.v1.iter().map(|hierarchy| hierarchy.controllers.join("+")).collect();
    assert_eq!(controllers, ["cpu+cpuacct", "name=systemd"]);
    let group = layout.group("/kubepods/pod1").unwrap();
    let directories: Vec<_> = group.directories().map(|path| path.display().to_string()).collect();
    assert_eq!(
        directories,
        [
            "/sys/fs/cgroup/cpu,cpuacct/kubepods/pod1",
            "/sys/fs/cgroup/systemd/kubepods/pod1",
            "/sys/fs/cgroup/unified/kubepods/pod1"
        ]
    );
}

#[test]
fn paths_do_not_leave_the_hierarchy() {
    for path in ["", "/", "../x", "a/../../b", "./a"] {
        assert_eq!(hybrid().group(path).unwrap_err().errno(), Some(libc::EINVAL), "{path}");
    }
}

#[test]
fn the_unified_group_of_a_process() {
    let table = [
        ("9:name=systemd:/a\n0::/orlop/pod/c/inner\n", Some("/orlop/pod/c/inner")),
        ("0::/\n", Some("/")),
        ("0::/../other\n", Some("/../other")),
        ("10:memory:/x\n", None),
    ];
    for (text, expected) in table {
        assert_eq!(unified_path(text), expected, "{text}");
    }
}

#[test]
fn shares_become_weights() {
    for (shares, weight) in
        [(0, 0), (1, 1), (2, 1), (102, 17), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)]
    {
        assert_eq!(weight_from_shares(shares), weight, "{shares}");
    }
}

#[test]
fn limits_become_v2_files() {
    let limits = Limits {
        cpu_shares: Some(1024),
        cpu_quota: Some(50_000),
        memory: Some(100),
        memory_and_swap: Some(150),
        pids: Some(-1),
        ..Limits::default()
    };
    let text: Vec<_> = v2_files(&limits).into_iter().map(|(file, value)| format!("{file}={value}")).collect();
    assert_eq!(
        text,
        ["cpu.weight=100", "cpu.max=50000 100000", "memory.max=100", "memory.swap.max=50", "pids.max=max"]
    );
    assert!(v2_files(&Limits::default()).is_empty());
}

#[test]
fn kills_for_memory_are_counted_in_both_versions() {
    let v2 = "low 0\nhigh 0\nmax 14\noom 2\noom_kill 3\noom_group_kill 1\n";
    let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n";
    // Linux before 4.13 counted nothing there.
    let old = "oom_kill_disable 0\nunder_oom 0\n";
    for (text, kills) in [(v2, 3), (v1, 1), (old, 0), ("", 0), ("oom_kill many\n", 0)] {
        assert_eq!(kills_in(text), kills, "{text:?}");
    }
}

#[test]
fn only_a_swap_limit_that_asks_nothing_may_lack_its_file() {
    let root = std::env::temp_dir().join(format!("orlop-limits-{}", std::process::id()));
    let group = Layout { v1: Vec::new(), unified: Some(root.clone()) }.group("g").unwrap();
    fs::create_dir_all(root.join("g")).unwrap();
    fs::write(root.join("g/memory.max"), "").unwrap();
    let apply =
        |both| group.apply(&Limits { memory: Some(100), memory_and_swap: Some(both), ..Limits::default() });
    let (none, unlimited, some) = (apply(100), apply(-1), apply(150));
    let written = fs::read_to_string(root.join("g/memory.max")).unwrap();
    fs::remove_dir_all(&root).unwrap();
    assert!(none.is_ok() && unlimited.is_ok(), "{none:?} {unlimited:?}");
    assert!(some.unwrap_err().is_not_found());
    assert_eq!(written, "100");
}
