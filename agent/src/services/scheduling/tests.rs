use super::*;

fn read(annotations: &[(&str, &str)]) -> (Scheduling, Vec<String>) {
    let annotations =
        annotations.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let mut problems = Vec::new();
    (Scheduling::read(Some(&annotations), &mut problems), problems)
}

#[test]
fn schedulers_have_the_names_of_ipvs() {
    let cases = [
        ("random", Scheduler::Random),
        ("rr", Scheduler::RoundRobin),
        ("wrr", Scheduler::RoundRobin),
        ("lc", Scheduler::LeastConnection),
        ("sh", Scheduler::SourceHash),
        (" mh ", Scheduler::Maglev),
        ("", Scheduler::Random),
    ];
    for (name, scheduler) in cases {
        assert_eq!(read(&[("orlop.dev/scheduler", name)]).0.scheduler, scheduler, "{name}");
    }
    assert_eq!(Scheduling::read(None, &mut Vec::new()), Scheduling::default());
    let (read, problems) = read(&[("orlop.dev/scheduler", "fastest")]);
    assert_eq!(read.scheduler, Scheduler::Random);
    let expected = "orlop.dev/scheduler: \"fastest\" is none of random, rr, wrr, lc, sh, mh; random is used";
    assert_eq!(problems, [expected]);
}

#[test]
fn weights_are_of_addresses_and_nodes() {
    let text = "node-a=4, 10.0.7.9 = 2,::ffff:10.0.7.8=0,fd00::9=256,node-b=257,node-c,=1,node-d=-1,";
    let (read, problems) = read(&[("orlop.dev/weights", text), ("orlop.dev/scheduler", "wrr")]);
    let cases = [
        ("10.0.7.9", Some("node-a"), 2),
        ("10.0.7.8", Some("node-a"), 0),
        ("10.0.7.7", Some("node-a"), 4),
        ("10.0.7.7", Some("node-b"), 1),
        ("10.0.7.7", None, 1),
        ("fd00::9", None, 256),
    ];
    for (address, node, weight) in cases {
        assert_eq!(read.weight(address.parse().unwrap(), node), weight, "{address} {node:?}");
    }
    let said: Vec<&str> = problems.iter().map(|problem| problem.split('"').nth(1).unwrap()).collect();
    assert_eq!(said, ["node-b=257", "node-c", "=1", "node-d=-1"]);
    assert_eq!(
        problems[1],
        "orlop.dev/weights: \"node-c\" is not a node's name or an endpoint's address, \"=\" and a number up to 256"
    );
}

#[test]
fn in_turn_and_by_connections_only_no_weight_at_all_counts() {
    for (name, expected) in
        [("rr", [1, 0]), ("lc", [1, 0]), ("wrr", [9, 0]), ("random", [9, 0]), ("mh", [9, 0])]
    {
        let (read, _) = read(&[("orlop.dev/weights", "a=9,b=0"), ("orlop.dev/scheduler", name)]);
        let weight = |node| read.weight("10.0.0.1".parse().unwrap(), Some(node));
        assert_eq!(["a", "b"].map(weight), expected, "{name}");
    }
}

#[test]
fn an_endpoint_stands_as_often_as_its_share() {
    let endpoint = |number: u8| SocketAddr::from(([10, 0, 0, number], 80));
    let listed = |weights: &[u16]| {
        let all = (1..).zip(weights).map(|(number, weight)| (endpoint(number), *weight));
        by_weight(all).iter().map(|address| address.to_string().as_bytes()[7] - b'0').collect::<Vec<u8>>()
    };
    assert_eq!(listed(&[1, 1]), [1, 2]);
    assert_eq!(listed(&[200, 100, 0]), [1, 1, 2]);
    assert_eq!(listed(&[7]), [1]);
    // More than the dataplane takes of one Service, in shares that nothing divides.
    let many = (0..300_u16).map(|number| (SocketAddr::from(([10, 1, 0, 0], number)), 256 - number % 2));
    let list = by_weight(many.chain([(endpoint(9), 1)]));
    assert!((16_000..16_700).contains(&list.len()), "{}", list.len());
    assert_eq!(list.iter().filter(|address| **address == endpoint(9)).count(), 1);
    assert!(listed(&[0, 0]).is_empty() && listed(&[]).is_empty());
}

#[test]
fn a_number_of_failures_is_read_or_said_to_be_none() {
    for (text, read) in [("3", Some(3)), (" 255 ", Some(255)), ("0", None), ("256", None), ("often", None)] {
        let annotations = [("orlop.dev/set-aside-after".to_owned(), text.to_owned())].into();
        let mut problems = Vec::new();
        let scheduling = Scheduling::read(Some(&annotations), &mut problems);
        assert_eq!(scheduling.set_aside_after.map(std::num::NonZeroU8::get), read, "{text}");
        assert_eq!(problems.len(), usize::from(read.is_none()), "{text}: {problems:?}");
    }
}
