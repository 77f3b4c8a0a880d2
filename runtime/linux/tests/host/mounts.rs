//! What may be done with what lies on the mounts that are made.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory that is unmounted and removed at the end.
struct Point(PathBuf);

impl Point {
    fn new(name: &str) -> Point {
        let inside = std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim() == "private-host");
        assert!(
            inside,
            "this test changes its host: run it with `cargo xtask test`, which gives it a private one"
        );
        let path = PathBuf::from("/run").join(name);
        std::fs::create_dir(&path).expect("a mount point");
        Point(path)
    }

    fn runs_programs(&self) -> bool {
        let program = self.0.join("program");
        std::fs::copy("/bin/true", &program).expect("copy a program");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("mark it");
        Command::new(program).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        linux::mount::detach(&self.0).expect("unmount");
        std::fs::remove_dir(&self.0).expect("remove the mount point");
    }
}

fn options_of(point: &Path) -> String {
    let table = std::fs::read_to_string("/proc/self/mounts").expect("the mount table");
    let of = |line: &&str| line.split(' ').nth(1) == point.to_str();
    table.lines().find(of).and_then(|line| line.split(' ').nth(3)).expect("is mounted").to_owned()
}

#[test]
fn programs_run_from_a_volume_in_memory_and_not_from_data() {
    let volume = Point::new("volume");
    linux::mount::tmpfs_of_programs(&volume.0, "mode=0777,size=4m").expect("mount");
    assert!(volume.runs_programs());
    let options = options_of(&volume.0);
    assert!(!options.contains("nosuid") && !options.contains("nodev"), "{options}");
    let data = Point::new("data");
    linux::mount::tmpfs(&data.0, "mode=0755,size=4m").expect("mount");
    assert!(!data.runs_programs());
    assert!(options_of(&data.0).contains("nosuid,nodev,noexec"), "{}", options_of(&data.0));
}
