//! Tables for the reader of foreign JSON.

use serde_json::json;

use super::{DOCUMENT_LIMIT, JsonError, Object, cidr, ip, parse_object};

#[test]
fn errors_name_the_key_the_value_and_the_expectation() {
    let map = parse_object(
        json!({"mtu": "1500", "on": 1, "big": 70000, "ipam": {"gateway": "10.0.0", "subnet": "10.0.0.1", "x": [1]}, "n": null})
            .to_string()
            .as_bytes(),
    )
    .expect("an object");
    let root = Object::root(&map);
    let ipam = root.object("ipam").expect("an object").expect("present");
    let errors = [
        root.number::<u32>("mtu").expect_err("a string").to_string(),
        root.boolean("on").expect_err("a number").to_string(),
        root.number::<u16>("big").expect_err("too big").to_string(),
        ipam.ip("gateway").expect_err("three octets").to_string(),
        ipam.cidr("subnet").expect_err("no length").to_string(),
        ipam.strings("x").expect_err("a number").to_string(),
        root.required::<u8>("name", None).expect_err("missing").to_string(),
    ];
    assert_eq!(
        errors,
        [
            r#"key "mtu": expected a whole number, found "1500""#,
            r#"key "on": expected true or false, found 1"#,
            r#"key "big": 70000 is out of range"#,
            r#"key "ipam.gateway": invalid IP address "10.0.0""#,
            r#"key "ipam.subnet": invalid CIDR address "10.0.0.1": expected ADDRESS/LENGTH such as 10.22.0.0/16"#,
            r#"key "ipam.x[0]": expected a string, found 1"#,
            r#"key "name": missing"#,
        ]
    );
    assert_eq!(root.string("n"), Ok(None));
}

#[test]
fn capitals_matter_only_between_keys_that_are_both_there() {
    let map = parse_object(br#"{"dataDir": "exact", "DATADIR": "other", "MTU": 1400, "Bridge": null}"#)
        .expect("an object");
    let root = Object::root(&map);
    assert_eq!(root.string("dataDir"), Ok(Some("exact")));
    assert_eq!(root.number::<u32>("mtu"), Ok(Some(1400)));
    assert_eq!(root.string("bridge"), Ok(None));
}

#[test]
fn documents_have_a_size_limit() {
    let large = vec![b' '; DOCUMENT_LIMIT + 1];
    assert_eq!(parse_object(&large), Err(JsonError::TooLarge { size: DOCUMENT_LIMIT + 1 }));
    assert!(matches!(parse_object(b"[]"), Err(JsonError::Syntax { .. })));
    assert!(matches!(parse_object(b"{"), Err(JsonError::Syntax { .. })));
}

#[test]
fn addresses_are_read_strictly() {
    assert_eq!(ip("::ffff:10.0.0.1"), ip("10.0.0.1"));
    for text in ["10.0.0.0/24", "fd00::/64", "0.0.0.0/0", "::/0"] {
        assert_eq!(cidr(text).expect(text).to_string(), text);
    }
    for text in [
        "10.0.0.0/33",
        "10.0.0.0/255.255.255.0",
        "10.0.0.0/+8",
        "10.0.0.0/",
        "/8",
        "fd00::/129",
        "10.0.0.0/0024",
    ] {
        assert!(cidr(text).is_err(), "{text}");
    }
}
