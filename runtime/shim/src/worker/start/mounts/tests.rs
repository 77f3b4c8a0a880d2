use super::*;

fn table() -> Vec<MountEntry> {
    let entry = |point: &str| MountEntry {
        root: "/".into(),
        mount_point: point.into(),
        filesystem: "tmpfs".into(),
        super_options: String::new(),
    };
    ["/", "/proc", "/run", "/run/lock", "/run/orlop/netns/a", "/var/lib/orlop"].map(entry).into()
}

fn point(path: &str, needed: &[&str]) -> Option<PathBuf> {
    let needed: Vec<PathBuf> = needed.iter().map(PathBuf::from).collect();
    dispensable(Path::new(path), &needed, &table()).map(Path::to_owned)
}

#[test]
fn the_file_system_of_the_volatile_state_is_left_out_unless_something_of_it_is_needed() {
    const PATH: &str = "/run/orlop/oci";
    assert_eq!(point(PATH, &["/var/lib/orlop/runtime", "/runner"]).unwrap(), Path::new("/run"));
    for needed in ["/run", "/run/lock/x", "/run/orlop/shm/b", "/"] {
        assert_eq!(point(PATH, &["/var/lib/orlop/runtime", needed]), None, "{needed}");
    }
    assert_eq!(point("/srv/state/oci", &[]), None, "on the root itself");
}
