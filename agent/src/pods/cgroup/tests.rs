use std::fs;
use std::process::{Command, Stdio};

use linux::cgroup::{Layout, V1Hierarchy};

use super::*;

/// Plain folders stand in for a hierarchy: one with a file in it cannot be removed, as a group with processes cannot.
#[tokio::test]
async fn whoever_outlives_the_containers_of_a_pod_is_killed() {
    let root = tempfile::tempdir().unwrap();
    let v1 = V1Hierarchy { controllers: vec!["memory".into()], mount: root.path().to_owned() };
    let layouts = [
        Layout { v1: Vec::new(), unified: Some(root.path().to_owned()) },
        // No unified tree beside it that would tell.
        Layout { v1: vec![v1], unified: None },
    ];
    for layout in layouts {
        let group = layout.group("kubepods/podu1").unwrap();
        let directory = group.directories().next().unwrap();
        fs::create_dir_all(&directory).unwrap();
        let mut orphan = Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().unwrap();
        let processes = directory.join("cgroup.procs");
        fs::write(&processes, format!("{}\n", orphan.id())).unwrap();
        let ended = std::thread::spawn(move || {
            let status = orphan.wait().unwrap();
            fs::remove_file(processes).unwrap();
            status
        });
        let removed = remove_group(group.clone()).await;
        if removed.is_err() {
            // What this test left running must not outlive it.
            group.kill(Duration::from_secs(10)).unwrap();
        }
        let status = ended.join().unwrap();
        assert_eq!((removed, status.code()), (Ok(()), None));
        assert!(!directory.exists());
    }
}
