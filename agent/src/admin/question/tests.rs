use proptest::prelude::*;
use serde_json::json;

use super::*;

fn refused<T: FromStr<Err = Unclear> + fmt::Debug>(text: &str) -> String {
    text.parse::<T>().unwrap_err().to_string()
}

#[test]
fn questions_are_names_alone_or_with_arguments() {
    let web = Key { namespace: "default".into(), name: "web".into() };
    let dns = Address { address: ([10, 96, 0, 10], 53).into(), protocol: Some(Protocol::Udp) };
    let cases = [
        (Question::Images, json!("images")),
        (Question::Drops, json!("drops")),
        (Question::Services { namespace: None }, json!({"services": {"namespace": null}})),
        (Question::Service { of: ServiceName::Key(web.clone()) }, json!({"service": {"of": "default/web"}})),
        (
            Question::Affinity { of: Some(ServiceName::Address(dns)) },
            json!({"affinity": {"of": "10.96.0.10:53/UDP"}}),
        ),
        (
            Question::Trace { to: dns, from: Client::Pod(web) },
            json!({"trace": {"to": "10.96.0.10:53/UDP", "from": "pod:default/web"}}),
        ),
    ];
    for (question, wire) in cases {
        assert_eq!(serde_json::to_value(&question).unwrap(), wire);
        assert_eq!(Question::parse(wire.to_string().as_bytes()), Ok(question));
    }
    let without = Question::parse(br#"{"services":{}}"#);
    assert_eq!(without, Ok(Question::Services { namespace: None }));
}

#[test]
fn what_is_not_a_question_is_refused_with_a_reason() {
    for line in [
        "images",
        "",
        "\"secrets\"",
        "{\"service\":{}}",
        "{\"service\":{\"of\":\"default\"}}",
        "{\"services\":{\"namespace\":\"a b\"}}",
        "{\"services\":{\"name\":\"web\"}}",
        "{\"images\":{}} {}",
        "[1]",
    ] {
        let error = Question::parse(line.as_bytes()).unwrap_err();
        assert!(error.starts_with("this question is not understood ("), "{line}: {error}");
    }
    let long = format!("\"{}\"", "x".repeat(MAX_BYTES));
    assert!(Question::parse(long.as_bytes()).unwrap_err().contains("at most 1024 bytes"));
    let deep = "[".repeat(MAX_BYTES);
    assert!(Question::parse(deep.as_bytes()).is_err());
}

#[test]
fn a_service_is_named_or_found_by_its_address() {
    let by_address = |text: &str| match text.parse() {
        Ok(ServiceName::Address(address)) => address,
        other => panic!("{text}: {other:?}"),
    };
    let v4 = ([10, 96, 0, 1], 443).into();
    assert_eq!(by_address("10.96.0.1:443"), Address { address: v4, protocol: None });
    assert_eq!(by_address("10.96.0.1:443/tcp").protocol, Some(Protocol::Tcp));
    assert_eq!(by_address("[::ffff:10.96.0.1]:443").address, v4);
    assert_eq!(by_address("[fd00::1]:443/UDP").to_string(), "[fd00::1]:443/UDP");
    assert!(matches!("kube-system/kube-dns".parse(), Ok(ServiceName::Key(_))));
    for text in ["web", "default/Web", "default/", "10.96.0.1", "10.96.0.1:443/QUIC", "a/b/c"] {
        assert_eq!(
            refused::<ServiceName>(text),
            format!(
                "\"{text}\" is not a Service: NAMESPACE/NAME, or ADDRESS:PORT with or without /TCP, /UDP or /SCTP"
            )
        );
    }
}

#[test]
fn clients_are_of_the_node_or_outside() {
    let outside = |port| Client::Outside { address: [192, 0, 2, 9].into(), port };
    assert_eq!("192.0.2.9".parse(), Ok(outside(None)));
    assert_eq!("192.0.2.9:4000".parse(), Ok(outside(Some(4000))));
    assert_eq!("node".parse(), Ok(Client::Node));
    assert!(matches!("pod:default/web-0".parse(), Ok(Client::Pod(_))));
    for text in ["pod:web-0", "nodes", "192.0.2.9:0", "192.0.2", ""] {
        let error = refused::<Client>(text);
        assert!(error.contains("pod:NAMESPACE/NAME, or node"), "{error}");
    }
    assert!(refused::<Client>(&"9".repeat(900)).len() < 200, "a long word is not repeated");
}

proptest! {
    #[test]
    fn no_line_is_too_strange(line in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,80}") {
        let _ = Question::parse(&line);
        for word in [&text, &format!("pod:{text}"), &format!("10.0.0.1:{text}"), &format!("{text}/{text}")] {
            if let Ok(name) = word.parse::<ServiceName>() {
                prop_assert_eq!(name.to_string().parse::<ServiceName>(), Ok(name));
            }
            if let Ok(client) = word.parse::<Client>() {
                prop_assert_eq!(client.to_string().parse::<Client>(), Ok(client));
            }
        }
    }
}
