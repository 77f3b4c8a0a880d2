//! Tables for the Deployment's decisions, and whole rollouts against a small model of the ReplicaSet controller.

use std::collections::HashSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStatus, DeploymentStrategy, ReplicaSet, ReplicaSetStatus,
    RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::limits::{Limits, Rounding, resolve};
use super::plan::{Action, Plan, View, plan};
use super::progress::{self, PROGRESSING};
use super::revision::{self, ANNOTATION_DESIRED, ANNOTATION_MAX, ANNOTATION_REVISION};
use super::scaling::{available, wanted};

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000_000 + seconds)
}

fn text(value: &str) -> IntOrString {
    IntOrString::String(value.to_owned())
}

fn template(image: &str) -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some([("app".to_owned(), "web".to_owned())].into()),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "c".into(),
                image: Some(image.into()),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
    }
}

fn deployment(replicas: i32, surge: &str, unavailable: &str) -> Deployment {
    Deployment {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("ns".into()),
            uid: Some("d-uid".into()),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            selector: LabelSelector {
                match_labels: Some([("app".to_owned(), "web".to_owned())].into()),
                ..LabelSelector::default()
            },
            template: template("v1"),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(text(surge)),
                    max_unavailable: Some(text(unavailable)),
                }),
            }),
            progress_deadline_seconds: Some(600),
            revision_history_limit: Some(2),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn spec(deployment: &mut Deployment) -> &mut DeploymentSpec {
    deployment.spec.as_mut().expect("made with a spec")
}

/// A cluster in which pods come and go at once, except that only some get ready per tick.
struct Cluster {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    clock: i64,
    uids: u32,
}

impl Cluster {
    fn new(deployment: Deployment) -> Self {
        Self { deployment, sets: Vec::new(), clock: 0, uids: 0 }
    }

    fn plan(&self) -> Plan {
        let sets = self.sets.clone();
        let occupied: HashSet<String> = sets
            .iter()
            .filter(|set| super::scaling::actual(set) > 0)
            .flat_map(|set| set.metadata.uid.clone())
            .collect();
        let view = View { deployment: &self.deployment, sets, occupied: &occupied, now: at(self.clock) };
        plan(view).expect("the deployment reads")
    }

    /// One pass of the controller.
    fn pass(&mut self) -> Plan {
        self.clock += 1;
        let decided = self.plan();
        for action in decided.actions.clone() {
            match action {
                Action::CreateSet(mut set) => {
                    self.uids += 1;
                    set.metadata.uid = Some(format!("uid-{}", self.uids));
                    set.metadata.creation_timestamp = Some(Time(at(self.clock)));
                    self.sets.push(*set);
                }
                Action::UpdateSet { set, .. } => {
                    let place = self.sets.iter().position(|own| own.metadata.uid == set.metadata.uid);
                    self.sets[place.expect("the set is there")] = *set;
                }
                Action::DeleteSet { uid, .. } => {
                    self.sets.retain(|set| set.metadata.uid.as_deref() != Some(&uid));
                }
                Action::Annotate { revision } => {
                    let annotations = self.deployment.metadata.annotations.get_or_insert_default();
                    annotations.insert(ANNOTATION_REVISION.to_owned(), revision);
                }
            }
        }
        if let Some(status) = &decided.status {
            self.deployment.status = Some(status.clone());
        }
        decided
    }

    /// One pass of the ReplicaSet controller and the nodes: numbers follow, at most `ready` more pods get ready per set.
    fn tick(&mut self, ready: i32) {
        for set in &mut self.sets {
            let replicas = wanted(set);
            let serving = available(set).min(replicas);
            let serving = (serving + ready).min(replicas);
            set.status = Some(ReplicaSetStatus {
                replicas,
                ready_replicas: Some(serving),
                available_replicas: Some(serving),
                observed_generation: set.metadata.generation,
                ..ReplicaSetStatus::default()
            });
        }
    }

    fn settle(&mut self) -> usize {
        for round in 1..200 {
            self.tick(1);
            let decided = self.pass();
            if decided.actions.is_empty() && decided.status.is_none() {
                return round;
            }
        }
        panic!("the rollout does not end: {:?}", self.deployment.status);
    }

    fn total(&self) -> i32 {
        self.sets.iter().map(wanted).sum()
    }

    fn serving(&self) -> i32 {
        self.sets.iter().map(available).sum()
    }

    fn status(&self) -> &DeploymentStatus {
        self.deployment.status.as_ref().expect("a status was written")
    }

    fn sizes(&self) -> Vec<i32> {
        self.sets.iter().map(wanted).collect()
    }
}

#[test]
fn percentages_are_rounded_as_upstream_does() {
    for (value, total, up, down) in [
        (text("25%"), 10, Some(3), Some(2)),
        (text("25%"), 1, Some(1), Some(0)),
        (text("0%"), 7, Some(0), Some(0)),
        (text("100%"), 7, Some(7), Some(7)),
        (text("33%"), 3, Some(1), Some(0)),
        (IntOrString::Int(4), 3, Some(4), Some(4)),
        (text("4"), 3, None, None),
        (text("many%"), 3, None, None),
    ] {
        assert_eq!(resolve(&value, total, Rounding::Up), up, "{value:?} of {total}");
        assert_eq!(resolve(&value, total, Rounding::Down), down, "{value:?} of {total}");
    }
}

#[test]
fn limits() {
    for (replicas, surge, unavailable, expected) in [
        (10, "25%", "25%", (3, 2)),
        (1, "25%", "25%", (1, 0)),
        (3, "0%", "0%", (0, 1)),
        (0, "25%", "25%", (0, 0)),
        (2, "0%", "200%", (0, 2)),
    ] {
        let limits = Limits::of(&deployment(replicas, surge, unavailable)).unwrap();
        assert_eq!((limits.surge, limits.unavailable), expected, "{replicas} {surge} {unavailable}");
    }
    let error = Limits::of(&deployment(1, "x", "25%")).unwrap_err();
    assert!(error.contains("maxSurge"), "{error}");
}

#[test]
fn the_first_pass_makes_a_set_with_all_replicas() {
    let mut cluster = Cluster::new(deployment(3, "25%", "25%"));
    let decided = cluster.pass();
    assert_eq!(cluster.sizes(), [3]);
    let set = &cluster.sets[0];
    let hash = revision::hash(&template("v1"), 0);
    assert_eq!(set.metadata.name, Some(format!("web-{hash}")));
    let selector = set.spec.as_ref().unwrap().selector.match_labels.clone().unwrap();
    assert_eq!(selector.get(revision::LABEL_HASH), Some(&hash));
    let annotations = set.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations[ANNOTATION_REVISION], "1");
    assert_eq!(annotations[ANNOTATION_DESIRED], "3");
    assert_eq!(annotations[ANNOTATION_MAX], "4");
    assert!(matches!(&decided.actions[1], Action::Annotate { revision } if revision == "1"));
    let progressing = progress::condition(cluster.status(), PROGRESSING).unwrap();
    assert_eq!(progressing.reason.as_deref(), Some("NewReplicaSetCreated"));
    cluster.settle();
    let progressing = progress::condition(cluster.status(), PROGRESSING).unwrap();
    assert_eq!(progressing.reason.as_deref(), Some("NewReplicaSetAvailable"));
    assert_eq!(progressing.message, Some(format!("ReplicaSet \"web-{hash}\" has successfully progressed.")));
}

#[test]
fn rollouts_keep_their_limits() {
    for (replicas, surge, unavailable) in [
        (10, "25%", "25%"),
        (3, "1%", "0%"),
        (4, "0%", "25%"),
        (1, "25%", "25%"),
        (5, "100%", "0%"),
        (7, "0%", "100%"),
    ] {
        let mut cluster = Cluster::new(deployment(replicas, surge, unavailable));
        cluster.settle();
        let limits = Limits::of(&cluster.deployment).unwrap();
        spec(&mut cluster.deployment).template = template("v2");
        cluster.deployment.metadata.generation = Some(2);
        for _ in 0..100 {
            let decided = cluster.pass();
            assert!(cluster.total() <= limits.most(), "surge of {replicas} {surge} {unavailable}");
            cluster.tick(1);
            assert!(
                cluster.serving() >= limits.least() - 1 && cluster.total() >= limits.least(),
                "availability of {replicas} {surge} {unavailable}: {:?}",
                cluster.sizes()
            );
            if decided.actions.is_empty() && decided.status.is_none() {
                break;
            }
        }
        assert_eq!(cluster.sizes(), [0, replicas], "{surge} {unavailable}");
        assert_eq!(cluster.status().updated_replicas, Some(replicas));
        assert_eq!(revision::revision(&cluster.deployment.metadata), 2);
    }
}

#[test]
fn going_back_to_an_old_template_takes_its_set_and_a_new_revision() {
    let mut cluster = Cluster::new(deployment(2, "1%", "0%"));
    cluster.settle();
    spec(&mut cluster.deployment).template = template("v2");
    cluster.settle();
    spec(&mut cluster.deployment).template = template("v1");
    cluster.settle();
    assert_eq!(cluster.sizes(), [2, 0]);
    assert_eq!(revision::revision(&cluster.sets[0].metadata), 3);
    let annotations = cluster.sets[0].metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations[revision::ANNOTATION_REVISION_HISTORY], "1");
}

#[test]
fn recreate_waits_for_the_old_pods() {
    let mut cluster = Cluster::new(deployment(3, "25%", "25%"));
    spec(&mut cluster.deployment).strategy =
        Some(DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None });
    cluster.settle();
    spec(&mut cluster.deployment).template = template("v2");
    cluster.pass();
    assert_eq!(cluster.sizes(), [0], "the old pods go first");
    cluster.pass();
    assert_eq!(cluster.sizes(), [0], "no new set while the old one reports pods");
    cluster.tick(1);
    cluster.pass();
    assert_eq!(cluster.sizes(), [0, 3]);
}

#[test]
fn history_is_limited() {
    let mut cluster = Cluster::new(deployment(1, "1", "0%"));
    spec(&mut cluster.deployment).strategy = None;
    for version in ["v1", "v2", "v3", "v4", "v5"] {
        spec(&mut cluster.deployment).template = template(version);
        cluster.settle();
    }
    let revisions: Vec<i64> = cluster.sets.iter().map(|set| revision::revision(&set.metadata)).collect();
    assert_eq!(revisions, [3, 4, 5]);
}

#[test]
fn a_paused_rollout_scales_but_does_not_roll() {
    let mut cluster = Cluster::new(deployment(2, "25%", "25%"));
    cluster.settle();
    spec(&mut cluster.deployment).paused = Some(true);
    spec(&mut cluster.deployment).template = template("v2");
    cluster.settle();
    assert_eq!(cluster.sizes(), [2]);
    let reason = |cluster: &Cluster| {
        progress::condition(cluster.status(), PROGRESSING).and_then(|condition| condition.reason.clone())
    };
    assert_eq!(reason(&cluster).as_deref(), Some("DeploymentPaused"));
    spec(&mut cluster.deployment).replicas = Some(5);
    cluster.settle();
    assert_eq!(cluster.sizes(), [5]);
    spec(&mut cluster.deployment).paused = Some(false);
    cluster.pass();
    assert_ne!(reason(&cluster).as_deref(), Some("DeploymentPaused"));
    cluster.settle();
    assert_eq!(cluster.sizes(), [0, 5]);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    let mut cluster = Cluster::new(deployment(10, "3", "2"));
    spec(&mut cluster.deployment).strategy = Some(DeploymentStrategy {
        type_: Some("RollingUpdate".into()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(3)),
            max_unavailable: Some(IntOrString::Int(2)),
        }),
    });
    cluster.settle();
    spec(&mut cluster.deployment).template = template("broken");
    for _ in 0..5 {
        cluster.pass();
        // The new pods never get ready.
        for set in &mut cluster.sets {
            let replicas = wanted(set);
            let serving = if available(set) > 0 { replicas } else { 0 };
            set.status = Some(ReplicaSetStatus {
                replicas,
                ready_replicas: Some(serving),
                available_replicas: Some(serving),
                ..ReplicaSetStatus::default()
            });
        }
    }
    assert_eq!(cluster.sizes(), [8, 5]);
    spec(&mut cluster.deployment).replicas = Some(15);
    cluster.pass();
    // The example of upstream's documentation: three of five more go to the old set, two to the new one.
    assert_eq!(cluster.sizes(), [11, 7]);
}

#[test]
fn a_rollout_that_stands_still_times_out() {
    let mut cluster = Cluster::new(deployment(1, "1%", "0%"));
    cluster.pass();
    cluster.tick(0);
    cluster.settle_without_ready();
    let recheck = cluster.plan().recheck.expect("the deadline runs");
    assert!(recheck.as_secs() > 500, "{recheck:?}");
    cluster.clock += 700;
    cluster.pass();
    let condition = progress::condition(cluster.status(), PROGRESSING).unwrap();
    assert_eq!(condition.reason.as_deref(), Some("ProgressDeadlineExceeded"));
    assert_eq!(condition.status, "False");
    assert_eq!(cluster.plan().recheck, None);
}

impl Cluster {
    fn settle_without_ready(&mut self) {
        for _ in 0..5 {
            self.pass();
            self.tick(0);
        }
    }
}

#[test]
fn hashes_follow_the_template_and_the_collision_count() {
    let first = revision::hash(&template("v1"), 0);
    assert_eq!(first, revision::hash(&template("v1"), 0));
    assert_ne!(first, revision::hash(&template("v2"), 0));
    assert_ne!(first, revision::hash(&template("v1"), 1));
    assert_eq!(first.len(), 10);
}
