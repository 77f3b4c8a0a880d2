use super::*;

#[test]
fn types() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let made = folder.path().join("a/b");
    assert!(check(&file, "").is_ok(), "nothing is checked");
    assert_eq!(
        check(&file, "File").unwrap_err(),
        format!("hostPath type check failed: {} is not a file", file.display())
    );
    check(&file, "FileOrCreate").unwrap();
    check(&file, "File").unwrap();
    assert!(check(&file, "DirectoryOrCreate").is_err());
    check(&made, "DirectoryOrCreate").unwrap();
    check(&made, "Directory").unwrap();
    assert!(check(&made, "Socket").is_err());
    check(Path::new("/dev/null"), "CharDevice").unwrap();
    assert!(check(&folder.path().join("../x"), "").is_err());
}
