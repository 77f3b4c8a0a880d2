use super::*;

const MOUNTINFO: &str = "\
30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
34 30 0:27 / /mnt/again rw,relatime - cgroup cgroup rw,cpu
";

#[test]
fn a_hybrid_machine_has_every_hierarchy_once() {
    let found = parse_hierarchies(MOUNTINFO, "9:name=systemd:/a\n1:cpu:/b/c\n0::/\n");
    let shown: Vec<(String, String)> = found
        .iter()
        .map(|h| (h.folder(Path::new("x")).display().to_string(), format!("{:?}", h.version)))
        .collect();
    assert_eq!(
        shown,
        [
            ("/sys/fs/cgroup/cpu/b/c/x".into(), "V1(\"cpu\")".into()),
            ("/sys/fs/cgroup/systemd/a/x".into(), "V1(\"none,name=systemd\")".into()),
            ("/sys/fs/cgroup/unified/x".into(), "V2".to_string()),
        ]
    );
}

#[test]
fn a_pure_machine_has_one() {
    let info = "25 20 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
    let found = parse_hierarchies(info, "0::/user.slice\n");
    assert_eq!(
        found,
        [Hierarchy {
            mount_point: "/sys/fs/cgroup".into(),
            version: Version::V2,
            current: "/user.slice".into()
        }]
    );
}

#[test]
fn an_absolute_cgroup_does_not_depend_on_who_calls() {
    let from = |own: &str| {
        let found = parse_hierarchies(MOUNTINFO, own);
        let leaf = found.iter().map(|h| h.folder(Path::new("/up/node"))).collect::<Vec<_>>();
        (leaf, found[0].split(Path::new("/up/node")).0)
    };
    let session = from("9:name=systemd:/user.slice/session-1.scope\n1:cpu:/b/c\n0::/user.slice\n");
    assert_eq!(session, from("9:name=systemd:/\n1:cpu:/\n0::/\n"));
    assert_eq!(session.0[0], Path::new("/sys/fs/cgroup/cpu/up/node"));
    assert_eq!(session.1, Path::new("/sys/fs/cgroup/cpu"));
}

#[test]
fn a_part_of_the_tree_mounted_as_its_root_is_not_counted_twice() {
    let info = "25 20 0:22 /box /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    let found = parse_hierarchies(info, "0::/box/inner\n");
    assert_eq!(found[0].folder(Path::new("x")), Path::new("/sys/fs/cgroup/inner/x"));
    assert!(is_pure_v2(&found));
    assert!(!is_pure_v2(&parse_hierarchies(MOUNTINFO, "9:name=systemd:/a\n1:cpu:/b/c\n0::/\n")));
}

#[test]
fn only_what_is_there_and_not_handed_down_yet_is_enabled() {
    assert_eq!(
        missing_controllers("cpuset cpu io memory pids rdma\n", "cpu pids\n"),
        ["cpuset", "io", "memory"]
    );
    assert!(missing_controllers("", "").is_empty());
}
