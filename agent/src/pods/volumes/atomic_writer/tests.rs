use super::*;
use crate::pods::volumes::payload::File;

fn files(list: &[(&str, &str)]) -> Payload {
    list.iter()
        .map(|(path, data)| (PathBuf::from(path), File { data: data.as_bytes().to_vec(), mode: 0o640 }))
        .collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn one_switch_changes_all_files() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write(root, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "1");
    assert_eq!(fs::read_to_string(root.join("d/b")).unwrap(), "2");
    assert_eq!(fs::read_link(root.join("a")).unwrap(), Path::new("..data/a"));
    assert_eq!(fs::metadata(root.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
    let before = fs::read_link(root.join("..data")).unwrap();

    write(root, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
    assert_eq!(fs::read_link(root.join("..data")).unwrap(), before, "nothing changed");

    write(root, &files(&[("a", "3"), ("c", "4")]), None).unwrap();
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "3");
    assert!(!root.join(&before).exists(), "the old version is gone");
    let names = names(root);
    assert_eq!(names.len(), 4, "{names:?}: a version, ..data, a, c");
    assert!(!names.contains(&"d".to_owned()));
}

#[test]
fn an_interrupted_write_is_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write(root, &files(&[("a", "1")]), None).unwrap();
    fs::create_dir(root.join("..2000_01_01_00_00_00.000000000")).unwrap();
    symlink("..2000_01_01_00_00_00.000000000", root.join("..data_tmp")).unwrap();
    fs::remove_file(root.join("a")).unwrap();
    write(root, &files(&[("a", "1")]), None).unwrap();
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "1");
    assert_eq!(names(root).len(), 3);
}

#[test]
fn an_empty_set_leaves_an_empty_volume() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &files(&[("a", "1")]), None).unwrap();
    write(folder.path(), &files(&[]), None).unwrap();
    assert!(!folder.path().join("a").exists());
}
