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

fn owners(uids: impl IntoIterator<Item = String>) -> BTreeMap<String, Owner> {
    uids.into_iter().map(|uid| (uid, Owner::default())).collect()
}

fn all(queue: &mut Queue) -> Vec<String> {
    std::iter::from_fn(|| queue.next()).map(|(uid, _)| uid).collect()
}

#[test]
fn a_pod_that_begins_while_leftovers_are_removed_keeps_its_folder() {
    let found = owners(names(&["before", "during", "gone"]));
    let mut queue = Queue::of(found, |uid| uid == "before");
    queue.begins("during");
    assert_eq!(all(&mut queue), ["gone"]);
}

#[test]
fn leftovers_end_a_few_at_a_time() {
    let mut queue = Queue::of(owners((0..WAITING + 9).map(|number| format!("u{number:05}"))), |_| false);
    let first = all(&mut queue);
    assert_eq!(first.len(), AT_ONCE);
    queue.ended("somebody-else");
    assert_eq!(queue.next(), None);
    let mut ended = first.len();
    let mut ending = first;
    while let Some(uid) = ending.pop() {
        queue.ended(&uid);
        let next = all(&mut queue);
        ended += next.len();
        ending.extend(next);
    }
    assert_eq!(ended, WAITING);
}
