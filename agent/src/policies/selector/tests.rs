use super::{Labels, Selector};

fn read(selector: serde_json::Value) -> (Selector, Vec<String>) {
    Selector::read(&serde_json::from_value(selector).expect("a selector"))
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn operators() {
    // Which of no label, a=1, a=2, a="" and b=1 match.
    let cases = [
        (serde_json::json!({}), "yes yes yes yes yes"),
        (serde_json::json!({"matchLabels": {"a": "1"}}), "no yes no no no"),
        (serde_json::json!({"matchLabels": {"a": "1", "b": "1"}}), "no no no no no"),
        (expression("a", "In", &["1", "2"]), "no yes yes no no"),
        (expression("a", "In", &[""]), "no no no yes no"),
        (expression("a", "NotIn", &["1", "3"]), "yes no yes yes yes"),
        (expression("a", "Exists", &[]), "no yes yes yes no"),
        (expression("a", "DoesNotExist", &[]), "yes no no no yes"),
    ];
    let objects: [&[(&str, &str)]; 5] = [&[], &[("a", "1")], &[("a", "2")], &[("a", "")], &[("b", "1")]];
    for (selector, expected) in cases {
        let (read, problems) = read(selector.clone());
        assert_eq!(problems, [""; 0]);
        let matches = objects.map(|pairs| if read.matches(&labels(pairs)) { "yes" } else { "no" });
        assert_eq!(matches.join(" "), expected, "{selector}");
    }
}

#[test]
fn all_requirements_have_to_hold() {
    let (both, _) = read(serde_json::json!({
        "matchLabels": {"a": "1"},
        "matchExpressions": [{"key": "b", "operator": "Exists"}, {"key": "c", "operator": "DoesNotExist"}],
    }));
    assert!(both.matches(&labels(&[("a", "1"), ("b", "")])));
    assert!(!both.matches(&labels(&[("a", "1")])));
    assert!(!both.matches(&labels(&[("b", "")])));
    assert!(!both.matches(&labels(&[("a", "1"), ("b", ""), ("c", "")])));
}

#[test]
fn the_same_said_in_another_way_is_equal() {
    let one = read(serde_json::json!({"matchLabels": {"a": "1"}, "matchExpressions": [
        {"key": "b", "operator": "NotIn", "values": ["2", "1"]}, {"key": "c", "operator": "Exists"},
    ]}));
    let other = read(serde_json::json!({"matchExpressions": [
        {"key": "c", "operator": "Exists", "values": []}, {"key": "a", "operator": "In", "values": ["1"]},
        {"key": "b", "operator": "NotIn", "values": ["1", "2", "2"]}, {"key": "a", "operator": "In", "values": ["1"]},
    ]}));
    assert_eq!(one, other);
    assert_ne!(one, read(serde_json::json!({"matchLabels": {"a": "1"}})));
}

#[test]
fn what_cannot_be_read_is_said_and_left_out() {
    let cases = [
        (expression("a", "in", &["1"]), "operator: \"in\" is none of In, NotIn, Exists, DoesNotExist"),
        (expression("a", "In", &[]), "values: In needs at least one"),
        (expression("a", "NotIn", &[]), "values: NotIn needs at least one"),
        (expression("a", "Exists", &["1"]), "values: Exists takes none"),
        (expression("a", "DoesNotExist", &["1"]), "values: DoesNotExist takes none"),
        (expression("", "Exists", &[]), "key: is empty"),
    ];
    for (selector, problem) in cases {
        let expected = (Selector::default(), vec![format!("matchExpressions[0].{problem}")]);
        assert_eq!(read(selector), expected);
    }
}

fn expression(key: &str, operator: &str, values: &[&str]) -> serde_json::Value {
    serde_json::json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
}
