use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

use super::*;

fn object(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"value": value}})).unwrap()
}

#[test]
fn a_full_list_tells_who_is_there_and_nobody_else() {
    let mut listing = Listing::default();
    let mut on = |event: Event<&'static str>| {
        let news = listing.on_event(event, |name| (!name.is_empty()).then(|| (*name).to_owned()));
        (news, listing.listed_once)
    };
    let is = |name: &'static str| Some(News::Is(name.to_owned(), name));
    let all = |names: &[&str]| Some(News::All(names.iter().map(|name| (*name).to_owned()).collect()));
    assert_eq!(on(Event::Init), (None, false));
    assert_eq!(on(Event::InitApply("a")), (is("a"), false));
    // The list broke off, and begins anew.
    assert_eq!(on(Event::Init), (None, false));
    assert_eq!(on(Event::InitApply("b")), (is("b"), false));
    assert_eq!(on(Event::InitApply("")), (None, false), "it is nobody");
    assert_eq!(on(Event::InitDone), (all(&["b"]), true));
    assert_eq!(on(Event::Apply("c")), (is("c"), true));
    assert_eq!(on(Event::Delete("c")), (Some(News::Gone("c".to_owned())), true));
    assert_eq!(on(Event::Init), (None, true));
    assert_eq!(on(Event::InitDone), (all(&[]), true), "what came between lists is in none");
}

#[test]
fn what_is_kept_changes_with_what_is_read_of_objects() {
    let mut kept = Kept::default();
    let mut on = |event: Event<ConfigMap>| {
        let read = |object: &ConfigMap| object.data.as_ref().and_then(|data| data.get("value").cloned());
        let changed = kept.on_event(event, |object| read(object).filter(|value| value != "none"));
        let items: Vec<String> = kept.items().iter().map(|(name, value)| format!("{name}={value}")).collect();
        (changed, items.join(" "), kept.is_listed())
    };
    let is = |changed: bool, items: &str, listed: bool| (changed, items.to_owned(), listed);
    assert_eq!(on(Event::Init), is(false, "", false));
    assert_eq!(on(Event::InitDone), is(true, "", true), "that there is nothing is news once");
    assert_eq!(on(Event::Init), is(false, "", true));
    assert_eq!(on(Event::InitDone), is(false, "", true));
    assert_eq!(on(Event::Apply(object("a", "1"))), is(true, "a=1", true));
    assert_eq!(on(Event::Apply(object("a", "1"))), is(false, "a=1", true));
    assert_eq!(on(Event::Apply(object("b", "1"))), is(true, "a=1 b=1", true));
    assert_eq!(on(Event::Apply(object("c", "none"))), is(false, "a=1 b=1", true));
    assert_eq!(on(Event::Apply(object("b", "none"))), is(true, "a=1", true));
    assert_eq!(on(Event::Delete(object("b", "1"))), is(false, "a=1", true));
    // While the watch was broken one came, one changed and one went.
    on(Event::Apply(object("z", "1")));
    assert_eq!(on(Event::Init), is(false, "a=1 z=1", true));
    assert_eq!(on(Event::InitApply(object("a", "2"))), is(true, "a=2 z=1", true));
    assert_eq!(on(Event::InitApply(object("b", "3"))), is(true, "a=2 b=3 z=1", true));
    assert_eq!(on(Event::InitDone), is(true, "a=2 b=3", true));
    assert_eq!(on(Event::Delete(object("a", "2"))), is(true, "b=3", true));
}
