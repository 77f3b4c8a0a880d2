//! Power cuts on ext4: what the file system has given to its disk so far is all that is left.
//!
//! The disk is a file behind a loop device. A copy of that file, taken while the file system is mounted, has nothing of what the
//! kernel still keeps in memory: no page, no directory entry, no rename that nobody synced. The kernel's own syncs are put off.
//! With the journal a sync of any file brings along what was done before it, so each name is looked for right after its own. An
//! ext4 without one is no test bed: on 6.1 a store that had been synced came back damaged.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use apiserver::pki::{self, Pki};
use apiserver::storage::embedded;

use crate::load::Load;

const BYTES: u64 = 64 << 20;
const ROUNDS: usize = 12;

struct Disk {
    /// Holds the images and the mount point.
    folder: tempfile::TempDir,
    image: PathBuf,
    cuts: usize,
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Disk {
    fn new() -> Self {
        harness::private_host::require();
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk-0");
        fs::File::create(&image).unwrap().set_len(BYTES).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        let disk = Disk { folder, image, cuts: 0 };
        fs::create_dir(disk.path()).unwrap();
        disk.mount();
        disk
    }

    /// Where the file system is.
    fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    fn mount(&self) {
        // `-n`: no note of it in /run, which is to be left as it was.
        run(Command::new("mount").args(["-n", "-o", "loop,commit=600"]).arg(&self.image).arg(self.path()));
    }

    /// The power goes and comes back.
    fn cut(&mut self) {
        self.cuts += 1;
        let found = self.folder.path().join(format!("disk-{}", self.cuts));
        fs::copy(&self.image, &found).unwrap();
        run(Command::new("umount").arg("-n").arg(self.path()));
        fs::remove_file(&self.image).unwrap();
        self.image = found;
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-n").arg(self.path()).output();
    }
}

/// Shows that a cut is one: what nobody synced is gone.
#[test]
fn what_is_not_synced_is_lost() {
    let mut disk = Disk::new();
    let file = disk.path().join("f");
    fs::write(&file, "one").unwrap();
    fs::File::open(&file).unwrap().sync_all().unwrap();
    fs::rename(&file, disk.path().join("g")).unwrap();
    disk.cut();
    assert!(file.exists() && !disk.path().join("g").exists());
}

#[test]
fn private_files_and_their_names_outlive_a_power_cut() {
    let mut disk = Disk::new();
    for contents in ["one", "two"] {
        let file = disk.path().join("f");
        pki::write_private_file(&file, contents).unwrap();
        disk.cut();
        assert_eq!(fs::read_to_string(&file).unwrap(), contents);
    }
    let data_dir = disk.path().join("var/lib/server");
    let ca = Pki::open(&data_dir).unwrap().ca_certificate().to_owned();
    // The last one to be named has no later sync to be brought along by.
    let names = || {
        let entries = fs::read_dir(data_dir.join("pki")).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<BTreeSet<_>>()
    };
    let named = names();
    disk.cut();
    assert_eq!(names(), named);
    let kept = fs::read_to_string(data_dir.join("pki/ca.crt")).unwrap();
    assert!(kept == ca && Pki::open(&data_dir).unwrap().ca_certificate() == ca);
}

#[test]
fn a_new_store_outlives_a_power_cut() {
    let mut disk = Disk::new();
    let store = disk.path().join("store.redb");
    drop(embedded::open(&store, 10).unwrap());
    disk.cut();
    assert!(store.exists());
    drop(embedded::open(&store, 10).unwrap());
}

#[tokio::test]
async fn nothing_acknowledged_is_lost() {
    let mut disk = Disk::new();
    let data_dir = disk.path().join("data");
    let certificate = |data_dir: &Path| fs::read_to_string(data_dir.join("pki/ca.crt")).unwrap();
    let load = Load::default();
    let mut ca = None;
    for round in 0..ROUNDS {
        load.round(&data_dir, round).await;
        let before = certificate(&data_dir);
        disk.cut();
        assert_eq!(certificate(&data_dir), *ca.get_or_insert(before), "round {round}");
    }
    load.end(&data_dir, ROUNDS).await;
}
