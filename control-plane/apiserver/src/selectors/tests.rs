//! Tables of selectors against labels and fields.

use serde_json::json;

use super::*;

#[test]
fn label_selectors_match_as_upstream() {
    let labels = |key: &str| match key {
        "app" => Some("web"),
        "tier" => Some("5"),
        "empty" => Some(""),
        _ => None,
    };
    for (selector, expected) in [
        ("", true),
        ("app", true),
        ("!app", false),
        ("!other", true),
        ("app=web", true),
        ("app == web", true),
        ("app!=web", false),
        ("other!=x", true),
        ("app in (api, web)", true),
        ("app notin (api,web),tier", false),
        ("other notin (x)", true),
        ("tier>4", true),
        ("tier < 5", false),
        ("empty=", true),
        ("empty in (),app", true),
    ] {
        assert_eq!(LabelSelector::parse(selector).unwrap().matches(labels), expected, "{selector}");
    }
}

#[test]
fn bad_label_selectors_are_refused() {
    for selector in ["app=web,", "=x", "app in web", "app in (a", "a b", "-x=1", "app=$", "tier>x"] {
        assert!(LabelSelector::parse(selector).is_err(), "{selector}");
    }
}

#[test]
fn field_selectors() {
    let fields = |key: &str| match key {
        "spec.nodeName" => Some("n1"),
        "a" => Some("x,y"),
        _ => None,
    };
    for (selector, expected) in [
        ("spec.nodeName=n1", true),
        ("spec.nodeName!=n1", false),
        ("spec.nodeName==n1,status.phase!=Failed", true),
        ("a=x\\,y", true),
        ("missing=", true),
    ] {
        assert_eq!(FieldSelector::parse(selector).unwrap().matches(fields), expected, "{selector}");
    }
    assert!(FieldSelector::parse("spec.nodeName").is_err());
}

#[test]
fn a_selector_object_reads_like_upstreams() {
    let expression = |key: &str, operator: &str, values: &[&str]| json!({"key": key, "operator": operator, "values": values});
    for (selector, expected) in [
        (json!(null), ""),
        (json!({}), ""),
        (json!({"matchLabels": {"b": "1", "a": ""}}), "a=,b=1"),
        (
            json!({"matchLabels": {"c": "1"}, "matchExpressions": [expression("d", "In", &["y", "x"]),
                expression("b", "NotIn", &["z"]), expression("a", "DoesNotExist", &[]), expression("e", "Exists", &[])]}),
            "!a,b notin (z),c=1,d in (x,y),e",
        ),
    ] {
        let text = text_of(&selector);
        assert_eq!(text, expected);
        assert!(LabelSelector::parse(&text).is_ok(), "{text}");
    }
}
