//! Tables for the packing, and a property: whatever happens to pods, the slices say exactly what the pods say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, Pod, PodCondition, PodIP, PodSpec, PodStatus, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use super::plan::{MAX_ENDPOINTS, Plan, View, plan};
use crate::backends::{TriggerTimes, find_port};

fn service() -> Service {
    Service {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("ns".into()),
            uid: Some("service".into()),
            labels: Some([("team".to_owned(), "a".to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            selector: Some([("app".to_owned(), "web".to_owned())].into()),
            ip_families: Some(vec!["IPv4".into()]),
            ports: Some(vec![ServicePort {
                name: Some("http".into()),
                port: 80,
                target_port: Some(IntOrString::String("web".into())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn pod(number: usize, ready: bool) -> Pod {
    pod_with_port(number, ready, 8080)
}

fn pod_with_port(number: usize, ready: bool, port: i32) -> Pod {
    let status = if ready { "True" } else { "False" };
    Pod {
        metadata: ObjectMeta {
            name: Some(format!("web-{number:05}")),
            namespace: Some("ns".into()),
            uid: Some(format!("uid-{number}")),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: Some(format!("node-{}", number % 3)),
            containers: vec![Container {
                ports: Some(vec![ContainerPort {
                    name: Some("web".into()),
                    container_port: port,
                    ..ContainerPort::default()
                }]),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some("Running".into()),
            pod_ips: Some(vec![
                PodIP { ip: format!("10.{}.{}.1", number / 250, number % 250) },
                PodIP { ip: format!("fd00::{number:x}") },
            ]),
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: status.into(),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }),
    }
}

/// The slices as the API server would hold them.
#[derive(Default)]
struct World {
    slices: BTreeMap<String, Arc<EndpointSlice>>,
    made: usize,
}

impl World {
    fn pass(&mut self, service: &Service, pods: &[Pod]) -> Plan {
        let pods: Vec<Arc<Pod>> = pods.iter().cloned().map(Arc::new).collect();
        let slices: Vec<Arc<EndpointSlice>> = self.slices.values().cloned().collect();
        let zones = HashMap::from([("node-1".to_owned(), "zone-b".to_owned())]);
        let view = View { service, pods: &pods, zones: &zones, slices: &slices, trigger: None };
        let decided = plan(&view);
        for mut slice in decided.create.iter().cloned() {
            self.made += 1;
            let name = format!("web-{:05}", self.made);
            slice.metadata.name = Some(name.clone());
            slice.metadata.generate_name = None;
            self.slices.insert(name, Arc::new(slice));
        }
        for slice in decided.update.iter().cloned() {
            let name = slice.metadata.name.clone().expect("a stored slice has a name");
            assert!(self.slices.insert(name, Arc::new(slice)).is_some(), "only stored slices are replaced");
        }
        for slice in &decided.delete {
            let name = slice.metadata.name.as_deref().expect("a stored slice has a name");
            assert!(self.slices.remove(name).is_some(), "deleted once");
        }
        decided
    }

    /// What the slices say: address, ready, port.
    fn says(&self) -> BTreeSet<(String, bool, i32)> {
        let mut facts = BTreeSet::new();
        for slice in self.slices.values() {
            let port = slice.ports.iter().flatten().next().and_then(|port| port.port).unwrap_or(0);
            let endpoints = slice.endpoints.as_deref().unwrap_or_default();
            assert!(endpoints.len() <= MAX_ENDPOINTS);
            for endpoint in endpoints {
                let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
                let fact = (endpoint.addresses[0].clone(), ready.unwrap_or(true), port);
                assert!(facts.insert(fact), "an endpoint stands in one slice only");
            }
        }
        facts
    }
}

fn expected(pods: &[Pod]) -> BTreeSet<(String, bool, i32)> {
    pods.iter()
        .map(|pod| {
            let status = pod.status.as_ref().expect("made with a status");
            let address = status.pod_ips.as_ref().expect("made with addresses")[0].ip.clone();
            let ready = status.conditions.as_ref().expect("made with conditions")[0].status == "True";
            let port = find_port(pod, &service().spec.unwrap().ports.unwrap()[0]).expect("made with a port");
            (address, ready, port)
        })
        .collect()
}

#[test]
fn a_new_service_gets_full_slices() {
    let mut world = World::default();
    let pods: Vec<Pod> = (0..250).map(|number| pod(number, true)).collect();
    let decided = world.pass(&service(), &pods);
    let mut sizes: Vec<usize> =
        decided.create.iter().map(|slice| slice.endpoints.as_ref().unwrap().len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [50, 100, 100]);
    let slice = &decided.create[0];
    let labels = slice.metadata.labels.as_ref().unwrap();
    assert_eq!(labels["kubernetes.io/service-name"], "web");
    assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], "endpointslice-controller.k8s.io");
    assert_eq!(labels["team"], "a");
    assert_eq!(slice.metadata.owner_references.as_ref().unwrap()[0].kind, "Service");
    let endpoint = &slice.endpoints.as_ref().unwrap()[1];
    assert_eq!(endpoint.target_ref.as_ref().unwrap().name.as_deref(), Some("web-00001"));
    assert_eq!(endpoint.zone.as_deref(), Some("zone-b"));
    assert!(world.pass(&service(), &pods).is_empty(), "a second pass has nothing to do");
}

#[test]
fn one_pods_change_touches_one_slice() {
    let mut world = World::default();
    let mut pods: Vec<Pod> = (0..250).map(|number| pod(number, true)).collect();
    world.pass(&service(), &pods);
    pods[120] = pod(120, false);
    let decided = world.pass(&service(), &pods);
    assert_eq!((decided.create.len(), decided.update.len(), decided.delete.len()), (0, 1, 0));
    pods.remove(10);
    let decided = world.pass(&service(), &pods);
    assert_eq!((decided.create.len(), decided.update.len(), decided.delete.len()), (0, 1, 0));
    pods.push(pod(999, true));
    let decided = world.pass(&service(), &pods);
    assert_eq!((decided.create.len(), decided.update.len(), decided.delete.len()), (0, 1, 0));
    assert_eq!(world.says(), expected(&pods));
}

#[test]
fn a_service_without_pods_has_one_empty_slice() {
    let mut world = World::default();
    let decided = world.pass(&service(), &[]);
    assert_eq!(decided.create.len(), 1);
    assert!(world.pass(&service(), &[]).is_empty());
    let pods = [pod(1, true)];
    let decided = world.pass(&service(), &pods);
    assert_eq!((decided.create.len(), decided.update.len(), decided.delete.len()), (0, 1, 0));
    let decided = world.pass(&service(), &[]);
    assert_eq!((decided.create.len(), decided.update.len(), decided.delete.len()), (0, 1, 0));
    assert_eq!(world.slices.len(), 1);
}

#[test]
fn conditions_of_a_pod_that_goes() {
    let mut going = pod(1, true);
    going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    let mut world = World::default();
    world.pass(&service(), std::slice::from_ref(&going));
    let slice = world.slices.values().next().unwrap();
    let conditions = slice.endpoints.as_ref().unwrap()[0].conditions.clone().unwrap();
    assert_eq!(
        (conditions.ready, conditions.serving, conditions.terminating),
        (Some(false), Some(true), Some(true))
    );
    let mut eager = service();
    eager.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
    world.pass(&eager, &[going]);
    let slice = world.slices.values().next().unwrap();
    assert_eq!(slice.endpoints.as_ref().unwrap()[0].conditions.as_ref().unwrap().ready, Some(true));
}

#[test]
fn hints_follow_the_traffic_distribution_of_the_service() {
    // Ready on node-1 in zone-b, ready on node-2 without a zone, not ready on node-1.
    let pods = [pod(1, true), pod(2, true), pod(4, false)];
    let mut world = World::default();
    // Zone and node that each is meant for.
    type Hints<'a> = [Option<&'a str>; 2];
    let cases: [(Option<&str>, [Hints<'_>; 3]); 5] = [
        (Some("PreferSameZone"), [[Some("zone-b"), None], [None; 2], [None; 2]]),
        (Some("PreferSameNode"), [[Some("zone-b"), Some("node-1")], [None, Some("node-2")], [None; 2]]),
        (Some("PreferClose"), [[Some("zone-b"), None], [None; 2], [None; 2]]),
        (Some("somewhere"), [[None; 2]; 3]),
        (None, [[None; 2]; 3]),
    ];
    for (distribution, expected) in cases {
        let mut service = service();
        service.spec.as_mut().unwrap().traffic_distribution = distribution.map(str::to_owned);
        world.pass(&service, &pods);
        assert!(world.pass(&service, &pods).is_empty(), "a second pass has nothing to do");
        let slice = world.slices.values().next().unwrap();
        let said: Vec<[Option<&str>; 2]> = slice.endpoints.iter().flatten().map(said_hints).collect();
        assert_eq!(said, expected, "{distribution:?}");
    }
}

/// The zone and the node that an endpoint is meant for.
fn said_hints(endpoint: &Endpoint) -> [Option<&str>; 2] {
    let Some(hints) = &endpoint.hints else { return [None; 2] };
    let zone = hints.for_zones.iter().flatten().next().map(|zone| zone.name.as_str());
    [zone, hints.for_nodes.iter().flatten().next().map(|node| node.name.as_str())]
}

#[test]
fn every_family_has_its_slices() {
    let mut dual = service();
    dual.spec.as_mut().unwrap().ip_families = Some(vec!["IPv4".into(), "IPv6".into()]);
    let mut world = World::default();
    world.pass(&dual, &[pod(1, true)]);
    let types: BTreeSet<&str> = world.slices.values().map(|slice| slice.address_type.as_str()).collect();
    assert_eq!(types, BTreeSet::from(["IPv4", "IPv6"]));
    let decided = world.pass(&service(), &[pod(1, true)]);
    assert_eq!((decided.create.len(), decided.update.len(), decided.delete.len()), (0, 0, 1));
}

#[test]
fn pods_with_other_port_numbers_stand_in_other_slices() {
    let pods = [pod_with_port(1, true, 8080), pod_with_port(2, true, 9090), pod_with_port(3, true, 8080)];
    let mut world = World::default();
    world.pass(&service(), &pods);
    assert_eq!(world.slices.len(), 2);
    assert_eq!(world.says(), expected(&pods));
}

#[test]
fn a_changed_label_of_the_service_reaches_the_slices() {
    let mut world = World::default();
    world.pass(&service(), &[pod(1, true)]);
    let mut renamed = service();
    renamed.metadata.labels = None;
    let decided = world.pass(&renamed, &[pod(1, true)]);
    assert_eq!(decided.update.len(), 1);
    assert!(!decided.update[0].metadata.labels.as_ref().unwrap().contains_key("team"));
}

/// A small generator of reproducible choices.
struct Choices(u64);

impl Choices {
    fn below(&mut self, limit: usize) -> usize {
        // Steele and Vigna's SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}

#[test]
fn random_changes_keep_the_mapping_exact_with_few_touched_slices() {
    for seed in 0..30 {
        let mut choices = Choices(seed);
        let mut world = World::default();
        let mut pods: Vec<Pod> = (0..choices.below(400)).map(|number| pod(number, true)).collect();
        let mut next = 1000;
        world.pass(&service(), &pods);
        for _ in 0..60 {
            let changes = 1 + choices.below(5);
            for _ in 0..changes {
                match choices.below(3) {
                    0 => {
                        pods.push(pod(next, choices.below(2) == 0));
                        next += 1;
                    }
                    1 if !pods.is_empty() => {
                        let place = choices.below(pods.len());
                        pods.remove(place);
                    }
                    _ if !pods.is_empty() => {
                        let place = choices.below(pods.len());
                        let conditions = pods[place].status.as_mut().unwrap().conditions.as_mut().unwrap();
                        let flipped = if conditions[0].status == "True" { "False" } else { "True" };
                        conditions[0].status = flipped.to_owned();
                    }
                    _ => {}
                }
            }
            let decided = world.pass(&service(), &pods);
            let touched = decided.create.len() + decided.update.len() + decided.delete.len();
            assert!(touched <= changes + 1, "seed {seed}: {changes} changes touched {touched} slices");
            assert_eq!(world.says(), expected(&pods), "seed {seed}");
            assert!(world.pass(&service(), &pods).is_empty(), "seed {seed}: a second pass has nothing to do");
        }
    }
}

#[test]
fn the_trigger_time_is_the_earliest_new_change() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let ready_since = |number, second| {
        let mut pod = pod(number, true);
        pod.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].last_transition_time =
            Some(Time(at(second)));
        Arc::new(pod)
    };
    let mut triggers = TriggerTimes::default();
    let first = [ready_since(1, 50), ready_since(2, 40)];
    assert_eq!(triggers.observe(&service(), &first), Some(at(40)));
    assert_eq!(triggers.observe(&service(), &first), None);
    let second = [ready_since(1, 50), ready_since(2, 70), ready_since(3, 60)];
    assert_eq!(triggers.observe(&service(), &second), Some(at(60)));
}
