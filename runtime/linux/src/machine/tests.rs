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
