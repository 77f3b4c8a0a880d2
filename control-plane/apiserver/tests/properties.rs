//! Properties of the parsers of foreign bytes and of the patches: nothing panics, what is printed parses again.

use apiserver::kinds::Registry;
use apiserver::object;
use apiserver::patch::{self, PatchType};
use apiserver::quantity::Quantity;
use apiserver::schema::{decode, protobuf};
use apiserver::selectors::{FieldSelector, LabelSelector};
use proptest::prelude::*;
use serde_json::{Map, Value};

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z$/\"\\\\é]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        let key = prop_oneof![
            Just("spec".to_owned()),
            Just("containers".to_owned()),
            Just("name".to_owned()),
            Just("$patch".to_owned()),
            Just("$setElementOrder/containers".to_owned()),
            Just("metadata".to_owned()),
            "[a-z]{1,3}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

thread_local! {
    static REGISTRY: Registry = Registry::build().unwrap();
}

const POD: &str = "io.k8s.api.core.v1.Pod";

proptest! {
    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode::parse(&bytes);
        REGISTRY.with(|registry| {
            let root = registry.type_of(POD).unwrap();
            let _ = protobuf::decode(&registry.schemas, &registry.numbers, root, &bytes);
            let mut enveloped = b"k8s\0\x12".to_vec();
            enveloped.push(bytes.len().min(127) as u8);
            enveloped.extend(&bytes);
            let _ = protobuf::decode(&registry.schemas, &registry.numbers, root, &enveloped);
        });
    }

    #[test]
    fn selectors_never_panic(text in "[a-z!=,()<> .\\\\/é-]{0,30}") {
        let _ = LabelSelector::parse(&text);
        let _ = FieldSelector::parse(&text);
    }

    #[test]
    fn quantities_print_what_they_are(whole in 0u64..1_000_000_000, suffix in prop::sample::select(vec!["", "m", "k", "Ki", "Mi", "G", "e3", "u"])) {
        let quantity = Quantity::parse(&format!("{whole}{suffix}")).unwrap();
        let again = Quantity::parse(&quantity.to_string()).unwrap();
        prop_assert_eq!(quantity.nano(), again.nano());
        prop_assert_eq!(quantity.to_string(), again.to_string());
    }

    #[test]
    fn a_value_that_conforms_stays_as_it_is(value in json()) {
        REGISTRY.with(|registry| {
            let root = registry.type_of(POD).unwrap();
            let mut once = value;
            if decode::conform(&registry.schemas, root, &mut once).is_ok() {
                let mut twice = once.clone();
                let problems = decode::conform(&registry.schemas, root, &mut twice).unwrap();
                prop_assert!(problems.is_empty(), "{:?}", problems);
                prop_assert_eq!(&once, &twice);
                let bytes = object::encode(&once);
                let mut read = object::decode(1, &bytes);
                object::metadata(&mut read).remove("resourceVersion");
                object::metadata(&mut once).remove("resourceVersion");
                prop_assert_eq!(read, once);
            }
            Ok(())
        })?;
    }

    #[test]
    fn patches_never_panic_and_merging_twice_changes_nothing(object in json(), patch in json()) {
        REGISTRY.with(|registry| {
            let root = registry.type_of(POD).unwrap();
            let apply = |kind, object: &Value| patch::apply(&registry.schemas, root, kind, object, &patch);
            let _ = apply(PatchType::Strategic, &object);
            let _ = apply(PatchType::Json, &object);
            if let Ok(once) = apply(PatchType::Merge, &object) {
                prop_assert_eq!(apply(PatchType::Merge, &once).unwrap(), once);
            }
            Ok(())
        })?;
    }
}
