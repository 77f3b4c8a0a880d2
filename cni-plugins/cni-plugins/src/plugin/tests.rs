//! The protocol, with a plugin that records: every verb times every version, and every way to call it wrongly.

use std::cell::RefCell;

use cni::{AddResult, ErrorReply, IpConfig, Version, code};
use serde_json::{Value, json};

use super::{Environment, Plugin, Request, run};

#[derive(Default)]
struct Recorder {
    calls: RefCell<Vec<String>>,
    result: AddResult,
}

impl Recorder {
    fn note(&self, call: &str) -> Result<(), ErrorReply> {
        self.calls.borrow_mut().push(call.to_owned());
        Ok(())
    }
}

impl Plugin for Recorder {
    const NAME: &'static str = "recorder";

    fn add(&self, _request: &Request) -> Result<AddResult, ErrorReply> {
        self.note("ADD")?;
        Ok(self.result.clone())
    }

    fn del(&self, _request: &Request) -> Result<(), ErrorReply> {
        self.note("DEL")
    }

    fn check(&self, _request: &Request) -> Result<(), ErrorReply> {
        self.note("CHECK")
    }

    fn gc(&self, request: &Request) -> Result<(), ErrorReply> {
        self.note(&format!("GC {}", request.valid_attachments()?.len()))
    }

    fn status(&self, _request: &Request) -> Result<(), ErrorReply> {
        self.note("STATUS")
    }
}

fn with_address() -> Recorder {
    let address = "10.0.0.2/24".parse().expect("a network");
    let result =
        AddResult { ips: vec![IpConfig { interface: None, address, gateway: None }], ..AddResult::default() };
    Recorder { result, ..Recorder::default() }
}

fn environment(command: &str) -> Environment {
    let some = |text: &str| Some(text.to_owned());
    Environment {
        command: some(command),
        container_id: some("abc"),
        netns: some("/nonexistent/netns"),
        ifname: some("eth0"),
        args: None,
        path: some("/opt/cni/bin"),
        netns_override: None,
    }
}

fn config(version: &str) -> Value {
    json!({"cniVersion": version, "name": "pods", "type": "recorder", "cni.dev/valid-attachments": []})
}

fn call(plugin: &Recorder, environment: &Environment, config: &Value) -> Result<Option<Value>, ErrorReply> {
    run(plugin, environment, config.to_string().as_bytes())
}

#[test]
fn every_verb_in_every_version() {
    for version in Version::ALL {
        for (command, allowed) in [
            ("ADD", true),
            ("DEL", true),
            ("CHECK", version >= Version::V0_4_0),
            ("GC", version >= Version::V1_1_0),
            ("STATUS", version >= Version::V1_1_0),
        ] {
            let plugin = with_address();
            let answer = call(&plugin, &environment(command), &config(version.as_str()));
            if !allowed {
                let reply = answer.expect_err("the version does not have the verb");
                assert_eq!(reply.code, code::INCOMPATIBLE_VERSION, "{command} {version}");
                assert_eq!(reply.msg, format!("config version does not allow {command}"));
                assert!(plugin.calls.borrow().is_empty());
                continue;
            }
            let document = answer.expect("the version has the verb");
            assert_eq!(document.is_some(), command == "ADD");
            if let Some(document) = document {
                assert_eq!(document["cniVersion"], version.as_str());
            }
            assert!(plugin.calls.borrow()[0].starts_with(command), "{command} {version}");
        }
    }
}

#[test]
fn version_needs_nothing_else() {
    let only = Environment { command: Some("VERSION".to_owned()), ..Environment::default() };
    let document = run(&Recorder::default(), &only, &b""[..]).expect("an answer").expect("a document");
    assert_eq!(document["cniVersion"], "1.1.0");
    assert_eq!(document["supportedVersions"].as_array().map(Vec::len), Some(Version::ALL.len()));
}

#[test]
fn a_result_that_the_version_cannot_carry_is_undone() {
    let plugin = Recorder::default();
    let reply = call(&plugin, &environment("ADD"), &config("0.2.0")).expect_err("no address");
    assert_eq!((reply.code, reply.cni_version.as_deref()), (code::INCOMPATIBLE_VERSION, Some("0.2.0")));
    assert_eq!(*plugin.calls.borrow(), ["ADD", "DEL"]);
}

#[test]
fn gc_keeps_nothing_where_the_list_is_null_and_refuses_to_guess_where_it_is_absent() {
    let plugin = Recorder::default();
    let mut config = config("1.1.0");
    config["cni.dev/valid-attachments"] = Value::Null;
    call(&plugin, &environment("GC"), &config).expect("an empty list of libcni");
    assert_eq!(*plugin.calls.borrow(), ["GC 0"]);
    config.as_object_mut().expect("an object").remove("cni.dev/valid-attachments");
    let reply = call(&plugin, &environment("GC"), &config).expect_err("everything would go");
    let message =
        "key \"cni.dev/valid-attachments\": missing, and GC guesses nothing: [] keeps no attachment";
    assert_eq!((reply.code, reply.msg.as_str()), (6, message));
}

#[test]
fn wrong_calls_have_the_codes_of_the_specification() {
    type Change = fn(&mut Environment, &mut Value);
    let table: [(&str, Change, u32, &str); 12] = [
        ("ADD", |e, _| e.command = Some("FLY".to_owned()), 4, "unknown CNI_COMMAND: FLY"),
        (
            "ADD",
            |e, _| (e.netns, e.ifname) = (None, None),
            4,
            "required env variables [CNI_NETNS,CNI_IFNAME] missing",
        ),
        ("DEL", |e, _| e.container_id = None, 4, "required env variables [CNI_CONTAINERID] missing"),
        ("GC", |e, _| e.path = None, 4, "required env variables [CNI_PATH] missing"),
        ("ADD", |e, _| e.container_id = Some("../a".to_owned()), 4, "invalid container ID"),
        ("ADD", |e, _| e.ifname = Some("a/b".to_owned()), 4, "invalid interface name"),
        ("ADD", |_, c| c["name"] = json!(""), 7, "missing network name"),
        ("ADD", |_, c| c["name"] = json!("a b"), 7, "invalid characters found in network name"),
        ("ADD", |_, c| c["name"] = json!(7), 6, "key \"name\": expected a string, found 7"),
        ("ADD", |_, c| c["cniVersion"] = json!("9.0.0"), 1, "incompatible CNI versions"),
        ("ADD", |_, c| *c = json!([]), 6, "expected an object"),
        ("GC", |_, c| c["cni.dev/valid-attachments"] = json!([{"ifname": "x"}]), 6, "containerID"),
    ];
    for (command, change, code, message) in table {
        let (mut environment, mut config) = (environment(command), config("1.1.0"));
        change(&mut environment, &mut config);
        let reply = call(&with_address(), &environment, &config).expect_err(message);
        assert_eq!(reply.code, code, "{message}: {reply}");
        assert!(reply.msg.contains(message), "{message}: {reply}");
    }
}

#[test]
fn del_does_without_a_namespace() {
    let without = Environment { netns: None, ..environment("DEL") };
    assert_eq!(call(&with_address(), &without, &config("1.0.0")), Ok(None));
}

#[test]
fn the_plugins_own_namespace_is_refused_unless_overridden() {
    let own = Environment { netns: Some("/proc/self/ns/net".to_owned()), ..environment("ADD") };
    let reply = call(&with_address(), &own, &config("1.0.0")).expect_err("it is the own one");
    assert_eq!(reply.code, code::INVALID_NETNS);
    let overridden = Environment { netns_override: Some("true".to_owned()), ..own };
    assert!(call(&with_address(), &overridden, &config("1.0.0")).is_ok());
    // They are of no container, whatever the environment has left over.
    for command in ["GC", "STATUS"] {
        let left_over = Environment { netns: Some("/proc/self/ns/net".to_owned()), ..environment(command) };
        assert_eq!(call(&with_address(), &left_over, &config("1.1.0")), Ok(None), "{command}");
    }
}

#[test]
fn unknown_arguments_are_refused_unless_ignored() {
    for (args, fine) in
        [("", true), ("MAC=1", true), ("X=1", false), ("X=1;IgnoreUnknown=true", true), ("X", false)]
    {
        let environment = Environment { args: Some(args.to_owned()), ..environment("ADD") };
        let stdin = config("1.0.0").to_string().into_bytes();
        let request = environment.request(cni::exec::Verb::Add, stdin).expect("a request");
        assert_eq!(request.args(&["MAC"]).is_ok(), fine, "{args:?}");
    }
}

#[test]
fn a_plugin_may_refuse_old_versions() {
    struct Younger;

    impl Plugin for Younger {
        const NAME: &'static str = "younger";
        const OLDEST: Version = Version::V0_3_1;

        fn add(&self, _request: &Request) -> Result<AddResult, ErrorReply> {
            Ok(AddResult::default())
        }

        fn del(&self, _request: &Request) -> Result<(), ErrorReply> {
            Ok(())
        }

        fn check(&self, _request: &Request) -> Result<(), ErrorReply> {
            Ok(())
        }

        fn gc(&self, _request: &Request) -> Result<(), ErrorReply> {
            Ok(())
        }

        fn status(&self, _request: &Request) -> Result<(), ErrorReply> {
            Ok(())
        }
    }

    let call = |command: &str, version: &str| {
        run(&Younger, &environment(command), config(version).to_string().as_bytes())
    };
    let old = call("ADD", "0.2.0").expect_err("too old");
    assert_eq!((old.code, old.msg.as_str()), (code::INCOMPATIBLE_VERSION, "incompatible CNI versions"));
    assert!(old.details.contains(r#"config is "0.2.0", plugin supports ["0.3.1""#), "{}", old.details);
    assert!(call("ADD", "0.3.1").is_ok());
    let version = call("VERSION", "0.2.0").expect("an answer").expect("a document");
    assert_eq!(version["supportedVersions"][0], "0.3.1");
}
