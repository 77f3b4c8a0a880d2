use super::*;

fn wanted() -> Wanted {
    Wanted {
        debug: false,
        nodes: 1,
        dual_stack: false,
        no_egress: false,
        mirrors: Vec::new(),
        server_flags: Vec::new(),
        agent_flags: Vec::new(),
    }
}

#[test]
fn options_are_shown_as_they_are_typed() {
    assert_eq!(wanted().to_string(), "no options");
    let all = Wanted {
        debug: true,
        nodes: 3,
        dual_stack: true,
        no_egress: true,
        mirrors: vec!["docker.io=http://127.0.0.1:5000".parse().expect("a mirror")],
        server_flags: vec!["--node-monitor-period=1s".to_owned()],
        agent_flags: vec!["--max-pods=9".to_owned()],
    };
    assert_eq!(
        all.to_string(),
        "--debug --nodes 3 --dual-stack --no-egress --registry-mirror docker.io=http://127.0.0.1:5000 \
         --server-flag=--node-monitor-period=1s --agent-flag=--max-pods=9"
    );
}

#[test]
fn mirrors_on_loopback_are_shown_to_nodes_under_the_hosts_address() {
    let cases = [
        ("docker.io=http://127.0.0.1:5000", true, "http://10.85.0.1:5000"),
        ("docker.io=http://localhost", true, "http://10.85.0.1:80"),
        ("docker.io=http://[::1]:5000/", true, "http://10.85.0.1:5000"),
        ("ghcr.io=https://mirror.example", false, "https://mirror.example:443"),
        ("registry.example:5000=http://192.0.2.7:5001", false, "http://192.0.2.7:5001"),
    ];
    for (text, loopback, seen) in cases {
        let mirror: Mirror = text.parse().expect("a mirror");
        assert_eq!((mirror.is_on_loopback(), mirror.seen_by_nodes().as_str()), (loopback, seen), "{text}");
    }
}

#[test]
fn mirrors_that_cannot_work_are_refused() {
    let bad = [
        "docker.io",
        "=http://a",
        "docker.io=",
        "a=ftp://b",
        "a=http://",
        "a=http://b:x",
        "a=http://b:0",
        "a=http://b/c",
    ];
    for text in bad {
        assert!(text.parse::<Mirror>().is_err(), "{text}");
    }
    let error = "docker.io=https://127.0.0.1:5000".parse::<Mirror>().expect_err("no certificate holds");
    assert!(error.ends_with("use http://"), "{error}");
}
