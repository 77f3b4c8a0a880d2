use super::*;

#[test]
fn nothing_is_removed_where_something_is_still_mounted() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("volumes/data/file");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "of somebody else").unwrap();
    let entry = |mount_point: PathBuf| MountEntry {
        root: "/".into(),
        mount_point,
        filesystem: "tmpfs".into(),
        super_options: String::new(),
    };
    let beside = entry(root.path().with_extension("other"));
    let table = [beside.clone(), entry(root.path().join("volumes/data"))];
    let error = remove_unmounted(root.path(), &table).unwrap_err();
    assert!(error.ends_with("volumes/data is still mounted"), "{error}");
    assert!(file.exists());
    remove_unmounted(root.path(), &[beside]).unwrap();
    assert!(!root.path().exists());
}
