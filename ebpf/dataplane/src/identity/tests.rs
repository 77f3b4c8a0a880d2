use super::*;

#[test]
fn a_pod_is_its_namespace_and_its_whole_name() {
    let pods =
        [("a", "web-3"), ("a", "web-30"), ("b", "web-3"), ("aw", "eb-3"), ("a", "web-3\0"), ("", "aweb-3")];
    let mut all: Vec<Identity> = pods.map(|(namespace, name)| Identity::of_pod(namespace, name)).into();
    let names = (0..10_000).map(|number| Identity::of_pod("default", &format!("a-longer-name-{number}")));
    all.extend(names);
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
}

#[test]
fn identities_are_the_same_in_every_build() {
    let pod = Identity::of_pod("default", "web-3");
    let found = [pod, pod.at_port(8080), Identity::of_address("10.0.0.3:8080".parse().unwrap())];
    let found = found.map(|identity| format!("{:x}", identity.0));
    assert_eq!(
        found,
        ["7cb01a8637dc76e0", "daa16c651c4eede8", "73bc2d01df9acd0e"],
        "flows of other nodes are led by this"
    );
}

#[test]
fn an_address_is_found_among_many() {
    let at = |number: u8| SocketAddr::from(([10, 0, 0, number], 80));
    let pod = |name: &str| Identity::of_pod("default", name);
    assert_eq!(Names::new([]), None);
    let names =
        Names::new([(at(3), pod("c")), (at(1), pod("a")), (at(3), pod("d")), (at(2), pod("b"))]).unwrap();
    assert_eq!([1, 2].map(|number| names.of(at(number))), ["a", "b"].map(|name| Some(pod(name))));
    assert_eq!(names.of(at(3)), Some(pod("c").max(pod("d"))), "whatever the order");
    assert_eq!(names.of(at(4)), None);
}
