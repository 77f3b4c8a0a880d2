//! The table against its sources, and decoding against Go's sentences.

use serde_json::json;

use super::*;

fn schemas() -> Schemas {
    Schemas::build(&source::definitions())
}

#[test]
fn every_fact_names_a_field() {
    let schemas = schemas();
    for (owner, field) in facts::all() {
        let known = schemas
            .types
            .iter()
            .any(|of| of.name.ends_with(&format!(".{owner}")) && of.field(field).is_some());
        assert!(known, "{owner}.{field}");
    }
}

fn conform(kind: &str, mut value: Value) -> Result<(Value, Vec<String>), String> {
    let schemas = schemas();
    let problems = decode::conform(&schemas, schemas.find(kind).unwrap(), &mut value).map_err(|e| e.0)?;
    Ok((value, problems))
}

#[test]
fn unknown_fields_are_reported_and_dropped() {
    let pod = json!({"spec": {"foo": 1, "containers": [{"name": "a", "imagee": "x", "env": [], "args": null}]},
        "metadata": {"labels": {"a": "b"}, "creationTimestamp": null}});
    let (value, problems) = conform("io.k8s.api.core.v1.Pod", pod).unwrap();
    assert_eq!(value, json!({"spec": {"containers": [{"name": "a"}]}, "metadata": {"labels": {"a": "b"}}}));
    assert_eq!(problems.len(), 2);
    assert!(problems.contains(&"unknown field \"spec.foo\"".to_owned()));
    assert!(problems.contains(&"unknown field \"spec.containers[0].imagee\"".to_owned()));
}

#[test]
fn type_errors_read_like_gos() {
    for (value, expected) in [
        (
            json!({"spec": {"replicas": "3"}}),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            json!({"spec": {"template": {"spec": {"containers": [{"image": 1}]}}}}),
            "json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.image of type string",
        ),
        (
            json!({"spec": {"template": {"spec": {"containers": {}}}}}),
            "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
        ),
        (
            json!({"metadata": {"labels": {"a": true}}}),
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string",
        ),
    ] {
        assert_eq!(conform("io.k8s.api.apps.v1.Deployment", value).unwrap_err(), expected);
    }
}

#[test]
fn quantities_and_times_become_canonical() {
    let pod = json!({"spec": {"containers": [{"resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]},
        "status": {"startTime": "2024-01-02T03:04:05.678+01:00"}});
    let (value, _) = conform("io.k8s.api.core.v1.Pod", pod).unwrap();
    assert_eq!(
        value["spec"]["containers"][0]["resources"]["limits"],
        json!({"cpu": "500m", "memory": "1Gi"})
    );
    assert_eq!(value["status"]["startTime"], "2024-01-02T02:04:05Z");
}

#[test]
fn duplicate_fields_are_reported() {
    let (value, duplicates) = decode::parse(br#"{"a":{"b":1,"b":2},"c":[{"d":1,"d":1}]}"#).unwrap();
    assert_eq!(value["a"]["b"], 2);
    assert_eq!(duplicates, ["duplicate field \"a.b\"", "duplicate field \"c[0].d\""]);
    assert!(decode::parse(b"{} x").is_err());
}
