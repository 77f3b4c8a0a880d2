use super::*;

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn whatever_is_left_tells_whose_it_is() {
    let logs = names(&["default_web_u3", "default_web_u1", "somebody-elses", "a_b_c_d", "_x_u9"]);
    let owners = of_names(&names(&["u1"]), &logs, &names(&["podu2", "burstable", "pod"]));
    let web = Owner { namespace: "default".into(), name: "web".into() };
    let expected = [("u1", web.clone()), ("u2", Owner::default()), ("u3", web)];
    assert_eq!(owners, expected.map(|(uid, owner)| (uid.to_owned(), owner)).into());
}

#[test]
fn names_that_lead_elsewhere_are_nobodys() {
    let logs = names(&["a_b_..", "a_b_.", "a_b_u1/.."]);
    let owners = of_names(&names(&[".lost", "u 2"]), &logs, &names(&["pod..", "pod", "podu1.slice"]));
    assert_eq!(owners, BTreeMap::new());
}

#[test]
fn only_folders_count_and_a_missing_parent_has_none() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("u1")).unwrap();
    fs::write(root.path().join("file"), "").unwrap();
    assert_eq!(folders(root.path()).unwrap(), ["u1"]);
    assert_eq!(folders(&root.path().join("none")).unwrap(), [""; 0]);
}
