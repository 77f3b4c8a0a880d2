//! The kinds of pods that come and go. Pure.

use serde_json::{Value, json};

/// Pods that stay until they are told to go carry `app=` this, so that a Service may have them as backends.
pub const LABEL: &str = "churn";
/// The ConfigMap that some of them mount, with the key `word` and the value of the same name.
pub const SETTINGS: &str = "settings";

const IMAGE: &str = "localhost/busybox:v1";
/// Runs until it is told to end; as pid 1, `sleep` alone would ignore SIGTERM.
const UNTIL_TOLD: &str = "trap 'exit 0' TERM; sleep infinity & wait";
/// Longer than any probe takes on a machine that starts hundreds of pods.
const PROBE_SECONDS: u32 = 30;

/// What a pod becomes before it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Nothing: it is deleted as soon as it is made.
    Created,
    /// Ready, and deleted at once.
    Ready,
    /// Ready, and deleted after a stay.
    Stayed,
    /// Every container has ended with 0.
    Succeeded,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub name: &'static str,
    pub until: Until,
    removal: Removal,
    body: Body,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removal {
    Usual,
    Forced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// One container that stays.
    Plain,
    /// One container that ends by itself.
    Ends,
    /// An init container hands a file to one that ends by itself.
    Init,
    /// Init container, ConfigMap, and probes that run commands.
    Probed,
    /// One container that has to be killed.
    Deaf,
}

pub const KINDS: [Kind; 10] = [
    Kind { name: "stays", until: Until::Stayed, removal: Removal::Usual, body: Body::Probed },
    Kind { name: "ends", until: Until::Succeeded, removal: Removal::Usual, body: Body::Ends },
    Kind { name: "hasty", until: Until::Created, removal: Removal::Usual, body: Body::Plain },
    Kind { name: "probed", until: Until::Ready, removal: Removal::Usual, body: Body::Probed },
    Kind { name: "init-ends", until: Until::Succeeded, removal: Removal::Usual, body: Body::Init },
    Kind { name: "forced", until: Until::Ready, removal: Removal::Forced, body: Body::Plain },
    Kind { name: "plain", until: Until::Ready, removal: Removal::Usual, body: Body::Plain },
    Kind { name: "deaf", until: Until::Ready, removal: Removal::Usual, body: Body::Deaf },
    Kind { name: "hasty-forced", until: Until::Created, removal: Removal::Forced, body: Body::Init },
    Kind { name: "stays-plain", until: Until::Stayed, removal: Removal::Usual, body: Body::Plain },
];

impl Kind {
    pub fn is_forced(&self) -> bool {
        self.removal == Removal::Forced
    }

    /// Whether its containers are to run until the pod is deleted.
    pub fn runs_on(&self) -> bool {
        self.until != Until::Succeeded
    }

    pub fn manifest(&self, name: &str) -> Value {
        let shell = |script: &str| json!(["sh", "-c", script]);
        let mounts = json!([{"name": "shared", "mountPath": "/shared"}, {"name": "settings", "mountPath": "/settings"}]);
        let volumes = json!([{"name": "shared", "emptyDir": {}}, {"name": "settings", "configMap": {"name": SETTINGS}}]);
        let init = json!([{"name": "first", "image": IMAGE, "command": shell("echo first > /shared/first"), "volumeMounts": mounts}]);
        let container = |script: Value| json!({"name": "main", "image": IMAGE, "command": script, "volumeMounts": mounts});
        let check = "grep -q first /shared/first && grep -q word /settings/word";
        let mut main = container(shell(UNTIL_TOLD));
        let mut spec = json!({"volumes": volumes});
        match self.body {
            Body::Plain => {}
            Body::Deaf => {
                main["command"] = json!(["sleep", "infinity"]);
                spec["terminationGracePeriodSeconds"] = json!(1);
            }
            Body::Ends => main["command"] = shell("grep -q word /settings/word"),
            Body::Init => {
                main["command"] = shell(check);
                spec["initContainers"] = init;
            }
            Body::Probed => {
                let probe = json!({"exec": {"command": shell(check)}, "timeoutSeconds": PROBE_SECONDS, "periodSeconds": 1});
                let slow = json!({"exec": {"command": shell(check)}, "timeoutSeconds": PROBE_SECONDS, "periodSeconds": 10});
                (main["readinessProbe"], main["livenessProbe"]) = (probe, slow);
                spec["initContainers"] = init;
            }
        }
        let ends = matches!(self.body, Body::Ends | Body::Init);
        spec["restartPolicy"] = json!(if ends { "Never" } else { "Always" });
        spec["containers"] = json!([main]);
        let labels = if ends { json!({}) } else { json!({"app": LABEL}) };
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
    }
}
