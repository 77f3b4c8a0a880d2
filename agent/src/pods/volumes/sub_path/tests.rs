use std::os::unix::fs::symlink;

use super::*;

#[test]
fn missing_directories_are_made() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path(), "a/b/c").unwrap();
    assert!(folder.path().join("a/b/c").is_dir());
    fs::write(folder.path().join("a/file"), "x").unwrap();
    let opened = open(folder.path(), "a/file").unwrap();
    assert_eq!(fs::read_to_string(proc_path(&opened)).unwrap(), "x");
}

#[test]
fn nothing_leads_out_of_the_volume() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::create_dir(folder.path().join("secret")).unwrap();
    symlink("../secret", volume.join("relative")).unwrap();
    symlink(folder.path().join("secret"), volume.join("absolute")).unwrap();
    fs::create_dir(volume.join("inside")).unwrap();
    symlink("inside", volume.join("good")).unwrap();
    open(&volume, "good/new").unwrap();
    for sub in ["relative", "absolute", "relative/x", "../secret", "/etc"] {
        assert!(open(&volume, sub).is_err(), "{sub}");
    }
    assert!(!folder.path().join("secret/x").exists());
}
