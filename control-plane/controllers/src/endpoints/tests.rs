//! Tables for the Endpoints object.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Endpoints, Pod, PodCondition, PodIP, PodStatus, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use super::plan::{ANNOTATION_OVER_CAPACITY, MAX_ADDRESSES, Write, plan};

fn service() -> Service {
    Service {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("ns".into()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some("10.0.0.1".into()),
            ports: Some(vec![ServicePort {
                port: 80,
                target_port: Some(IntOrString::Int(8080)),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn pod(number: usize, ready: bool) -> Arc<Pod> {
    Arc::new(Pod {
        metadata: ObjectMeta {
            name: Some(format!("p{number}")),
            namespace: Some("ns".into()),
            ..ObjectMeta::default()
        },
        spec: None,
        status: Some(PodStatus {
            phase: Some("Running".into()),
            pod_ips: Some(vec![PodIP { ip: format!("10.1.{}.{}", number / 200, number % 200) }]),
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: if ready { "True" } else { "False" }.into(),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }),
    })
}

fn created(write: Write) -> Endpoints {
    match write {
        Write::Create(object) | Write::Replace(object) => *object,
        Write::Nothing => panic!("something has to be written"),
    }
}

#[test]
fn ready_and_unready_addresses_share_a_subset() {
    let object = created(plan(&service(), &[pod(2, true), pod(1, false)], None, None));
    let subsets = object.subsets.clone().unwrap();
    assert_eq!(subsets.len(), 1);
    assert_eq!(subsets[0].addresses.as_ref().unwrap()[0].ip, "10.1.0.2");
    assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap()[0].ip, "10.1.0.1");
    assert_eq!(subsets[0].ports.as_ref().unwrap()[0].port, 8080);
    let again = plan(&service(), &[pod(1, false), pod(2, true)], Some(&object), None);
    assert_eq!(again, Write::Nothing, "the order of pods does not matter");
}

#[test]
fn terminating_pods_are_left_out_unless_all_are_published() {
    let mut going = Pod::clone(&pod(1, true));
    going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    let pods = [Arc::new(going)];
    assert_eq!(created(plan(&service(), &pods, None, None)).subsets, None);
    let mut eager = service();
    eager.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
    let subsets = created(plan(&eager, &pods, None, None)).subsets.unwrap();
    assert_eq!(subsets[0].addresses.as_ref().unwrap().len(), 1);
}

#[test]
fn a_thousand_addresses_are_the_limit_and_ready_ones_come_first() {
    let pods: Vec<Arc<Pod>> = (0..MAX_ADDRESSES + 50).map(|number| pod(number, number >= 100)).collect();
    let object = created(plan(&service(), &pods, None, None));
    let annotations = object.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations[ANNOTATION_OVER_CAPACITY], "truncated");
    let subset = &object.subsets.as_ref().unwrap()[0];
    assert_eq!(subset.addresses.as_ref().unwrap().len(), 950);
    assert_eq!(subset.not_ready_addresses.as_ref().unwrap().len(), 50);
    assert_eq!(plan(&service(), &pods, Some(&object), None), Write::Nothing);
    let fewer = created(plan(&service(), &pods[..10], Some(&object), None));
    assert_eq!(fewer.metadata.annotations, None);
}
