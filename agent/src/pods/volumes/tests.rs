use super::*;

#[test]
fn a_pod_that_begins_while_leftovers_are_removed_keeps_its_folder() {
    let root = tempfile::tempdir().unwrap();
    for uid in ["gone", "known"] {
        fs::create_dir_all(root.path().join(uid).join("volumes")).unwrap();
    }
    let left = leftovers(root.path(), |uid| uid == "known").unwrap();
    fs::create_dir_all(root.path().join("begun")).unwrap();
    remove_leftovers(&left).unwrap();
    let mut names: Vec<_> =
        fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["begun", "known"]);
}
