//! What an answer lists of what is missing.

use serde_json::json;

use super::*;

#[test]
fn a_long_list_of_missing_rules_is_cut() {
    let names: Vec<String> = (0..60).map(|number| format!("n{number:02}")).collect();
    let rule = |names: &[String]| {
        Rule::of(&json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": names}))
    };
    let of = |names: &[String]| listed(&missing(&[], &[rule(names)]));
    let line = |name: &str| {
        format!("{{APIGroups:[\"\"], Resources:[\"pods\"], ResourceNames:[{name:?}], Verbs:[\"get\"]}}")
    };
    assert_eq!(of(&["b".into(), "a".into()]), format!("{}\n{}", line("a"), line("b")));
    assert_eq!(of(&names[..50]).lines().next_back(), Some(line("n49").as_str()), "all are listed");
    let cut = of(&names);
    let lines: Vec<&str> = cut.lines().collect();
    assert_eq!((lines.len(), lines[49], lines[50]), (51, line("n49").as_str(), "and 10 more"));
}

#[test]
fn a_long_text_is_cut() {
    let start = "{APIGroups:[\"\"], Resources:[\"";
    for (letter, fits) in [("x", MAX_LISTED_BYTES), ("ß", MAX_LISTED_BYTES - 1)] {
        let long =
            Rule::of(&json!({"verbs": ["get"], "apiGroups": [""], "resources": [letter.repeat(1 << 20)]}));
        let listed = listed(&missing(&[], &[long]));
        let letters = letter.repeat((fits - start.len()) / letter.len());
        assert_eq!(listed, format!("{start}{letters}…"), "{letter}");
    }
}
