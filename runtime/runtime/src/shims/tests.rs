//! Which processes are asked for their command lines, and for how long they are waited for.

use super::*;

fn place(namespace: u32, group: &str) -> Place {
    Place {
        pid_namespace: format!("pid:[{namespace}]").into(),
        cgroups: format!("1:cpu:{group}\n0::{group}\n"),
    }
}

#[test]
fn processes_of_containers_are_not_asked() {
    let in_group = Some(BTreeSet::from([7]));
    let (agent, shims, pod) = (place(1, "/agent"), place(1, "/shims"), place(1, "/pods/a"));
    for (shims_group, pid, place, asked) in [
        (&in_group, 7, &shims, true),
        (&in_group, 8, &agent, true),
        (&in_group, 8, &pod, false),
        (&in_group, 7, &place(2, "/shims"), false),
        (&in_group, 8, &place(2, "/agent"), false),
        (&None, 8, &pod, true),
        (&None, 8, &place(2, "/agent"), false),
    ] {
        let trust = Trust { own: agent.clone(), shims: shims_group.clone() };
        assert_eq!(trust.covers(pid, place), asked, "{shims_group:?} {pid} {place:?}");
    }
}

#[test]
fn a_look_that_hangs_gives_what_it_found() {
    let (sender, receiver) = mpsc::channel();
    sender.send(7).unwrap();
    assert_eq!(found_until(Instant::now(), &receiver), (vec![7], false));
    sender.send(8).unwrap();
    drop(sender);
    assert_eq!(found_until(Instant::now() + LOOK_LIMIT, &receiver), (vec![8], true));
}
