use clap::Parser;

use super::super::{Command, Flags};
use super::*;

fn machine() -> Machine {
    Machine {
        hostname: Some("Node-A".into()),
        unified_hierarchy: Some("/sys/fs/cgroup".into()),
        ..Machine::default()
    }
}

fn pod() -> Surroundings {
    Surroundings {
        service_host: Some("10.96.0.1".into()),
        service_port: Some("443".into()),
        service_account: Some("/account".into()),
    }
}

fn parse(arguments: &[&str], surroundings: &Surroundings) -> Result<ProxyTask, String> {
    let flags = Flags::try_parse_from(["orlop-agent", "proxy"].iter().chain(arguments));
    let Some(Command::Proxy(flags)) = flags.map_err(|error| error.to_string())?.command else {
        panic!("not the proxy")
    };
    flags.validate(&machine(), surroundings).map_err(|error| error.to_string())
}

fn settings(arguments: &[&str]) -> ProxySettings {
    match parse(arguments, &pod()) {
        Ok(ProxyTask::Serve(settings)) => *settings,
        other => panic!("{arguments:?}: {other:?}"),
    }
}

#[test]
fn defaults_are_kube_proxys() {
    let settings = settings(&[]);
    assert_eq!(settings.node_name, "node-a");
    let server = Uri::from_static("https://10.96.0.1:443");
    assert_eq!(settings.access, Access::ServiceAccount { folder: "/account".into(), server });
    assert_eq!(settings.healthz, Some(([0, 0, 0, 0], 10256).into()));
    assert_eq!(settings.metrics, Some(([127, 0, 0, 1], 10249).into()));
    assert_eq!(settings.node_ports, NodePortAddresses::All);
    assert_eq!(settings.bpf_pin_root, PathBuf::from("/sys/fs/bpf/orlop"));
    assert_eq!(settings.dataplane_cgroup, PathBuf::from("/sys/fs/cgroup"));
    assert_eq!(settings.admin_socket, Some("/run/orlop/proxy.sock".into()));
    assert!(settings.uplinks.is_empty());
}

#[test]
fn the_server_is_the_masters_whatever_the_rest_says() {
    let access = |arguments: &[&str]| settings(arguments).access;
    let server = || Uri::from_static("https://192.0.2.1:6443");
    let master = ["--master", "https://192.0.2.1:6443"];
    assert_eq!(access(&master), Access::ServiceAccount { folder: "/account".into(), server: server() });
    let file = ["--kubeconfig", "/etc/kubeconfig"];
    let path = || PathBuf::from("/etc/kubeconfig");
    assert_eq!(access(&file), Access::Kubeconfig { path: path(), server: None });
    assert_eq!(access(&[master, file].concat()), Access::Kubeconfig { path: path(), server: Some(server()) });
    // With it, the environment says nothing that is needed.
    let bare = Surroundings { service_account: Some("/account".into()), ..Surroundings::default() };
    assert!(parse(&master, &bare).is_ok());
}

#[test]
fn values_are_read_as_kube_proxy_reads_them() {
    let of = |flag: &str, value: &str| settings(&[flag, value]);
    assert_eq!(of("--hostname-override", " Node-B ").node_name, "node-b");
    assert_eq!(of("--healthz-bind-address", "").healthz, None);
    assert_eq!(of("--healthz-bind-address", "::").healthz, Some("[::]:10256".parse().unwrap()));
    assert_eq!(of("--metrics-bind-address", "[::1]:9000").metrics, Some("[::1]:9000".parse().unwrap()));
    assert_eq!(of("--nodeport-addresses", "primary").node_ports, NodePortAddresses::Primary);
    assert_eq!(of("--admin-socket", "").admin_socket, None);
    let networks = ["192.0.2.0/24", "2001:db8::/64"].map(|text| text.parse().unwrap()).to_vec();
    let within = of("--nodeport-addresses", "192.0.2.0/24,2001:db8::/64").node_ports;
    assert_eq!(within, NodePortAddresses::Within(networks));
}

#[test]
fn every_bad_value_has_one_clear_error() {
    let cases = [
        (["--kubeconfig", "here"], "setting kubeconfig: \"here\" is not an absolute path"),
        (
            ["--master", "192.0.2.1:6443"],
            "setting master: \"192.0.2.1:6443\" is not the URL of an API server, such as https://192.0.2.10:6443",
        ),
        (
            ["--hostname-override", "node_a"],
            "setting hostname-override: \"node_a\" is not the name of a Node: letters, digits, '-' and '.'",
        ),
        (
            ["--healthz-bind-address", "node:10256"],
            "setting healthz-bind-address: \"node:10256\" is not an address to listen on, such as 0.0.0.0:10256 or [::]:10256",
        ),
        (
            ["--metrics-bind-address", "0.0.0.0:0"],
            "setting metrics-bind-address: \"0.0.0.0:0\" is not an address to listen on, such as 0.0.0.0:10256 or [::]:10256",
        ),
        (
            ["--nodeport-addresses", "192.0.2.0/24,primary"],
            "setting nodeport-addresses: \"primary\" is not networks such as 192.0.2.0/24, or `primary` alone",
        ),
        (
            ["--nodeport-addresses", "192.0.2.1"],
            "setting nodeport-addresses: \"192.0.2.1\" is not networks such as 192.0.2.0/24, or `primary` alone",
        ),
        (
            ["--uplink", "a-name-of-sixteen"],
            "setting uplinks: \"a-name-of-sixteen\" is not the name of a link, at most 15 bytes",
        ),
        (
            ["--uplink-acceleration", "generic"],
            "setting uplink-acceleration: \"generic\" is not one of disabled, best-effort and native",
        ),
        (["--admin-socket", "run"], "setting admin-socket: \"run\" is not an absolute path"),
        (["--bpf-pin-root", "bpf"], "setting bpf-pin-root: \"bpf\" is not an absolute path"),
        (["--dataplane-cgroup", "pods"], "setting dataplaneCgroup: \"pods\" is not an absolute path"),
        (["--log-format", "xml"], "setting logFormat: \"xml\" is not one of text and json"),
    ];
    for (arguments, message) in cases {
        assert_eq!(parse(&arguments, &pod()), Err(message.to_owned()));
    }
}

#[test]
fn who_has_no_way_to_the_api_server_is_told_what_is_missing() {
    let nowhere = parse(&[], &Surroundings::default()).unwrap_err();
    let account = "there is no token in /var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(nowhere, format!("no way to the API server: {account}; give --kubeconfig, or run in a pod"));
    let half = Surroundings { service_port: None, ..pod() };
    let unset = parse(&[], &half).unwrap_err();
    assert!(unset.contains("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set"), "{unset}");
}

#[test]
fn what_only_other_modes_of_kube_proxy_know_is_refused() {
    for arguments in [["--proxy-mode", "iptables"], ["--cluster-cidr", "10.0.0.0/8"]] {
        let error = parse(&arguments, &pod()).unwrap_err();
        assert!(error.contains("unexpected argument"), "{error}");
    }
    // Nor does the agent's own command line go with it.
    assert!(Flags::try_parse_from(["orlop-agent", "--node-ip", "192.0.2.1", "proxy"]).is_err());
    assert!(Flags::try_parse_from(["orlop-agent", "--node-ip", "192.0.2.1"]).unwrap().command.is_none());
}

#[test]
fn cleaning_up_needs_no_api_server() {
    let task = parse(&["--cleanup", "--bpf-pin-root", "/sys/fs/bpf/other"], &Surroundings::default());
    let bpf_pin_root = "/sys/fs/bpf/other".into();
    assert_eq!(task, Ok(ProxyTask::CleanUp { bpf_pin_root, log_format: LogFormat::Text }));
}

#[test]
fn settings_are_printed_under_the_flags_names() {
    let printed = |arguments: &[&str]| settings(arguments).to_yaml().unwrap();
    let defaults = "serviceAccount: /account
master: https://10.96.0.1:443/
hostnameOverride: node-a
healthzBindAddress: 0.0.0.0:10256
metricsBindAddress: 127.0.0.1:10249
nodeportAddresses: []
uplinks: []
uplinkAcceleration: disabled
bpfPinRoot: /sys/fs/bpf/orlop
dataplaneCgroup: /sys/fs/cgroup
adminSocket: /run/orlop/proxy.sock
logFormat: text
";
    assert_eq!(printed(&[]), defaults);
    let told = printed(&[
        "--kubeconfig=/etc/kubeconfig",
        "--healthz-bind-address=",
        "--metrics-bind-address=::1",
        "--nodeport-addresses=192.0.2.0/24,2001:db8::/64",
        "--uplink=eth1",
        "--uplink-acceleration=best-effort",
        "--admin-socket=",
        "--log-format=json",
    ]);
    let expected = "kubeconfig: /etc/kubeconfig
master: null
hostnameOverride: node-a
healthzBindAddress: ''
metricsBindAddress: '[::1]:10249'
nodeportAddresses:
- 192.0.2.0/24
- 2001:db8::/64
uplinks:
- eth1
uplinkAcceleration: best-effort
bpfPinRoot: /sys/fs/bpf/orlop
dataplaneCgroup: /sys/fs/cgroup
adminSocket: ''
logFormat: json
";
    assert_eq!(told, expected);
    assert!(printed(&["--nodeport-addresses=primary"]).contains("nodeportAddresses:\n- primary\n"));
    assert!(parse(&["--print-config", "--cleanup"], &pod()).unwrap_err().contains("cannot be used with"));
}

#[test]
fn node_ports_answer_at_the_chosen_addresses() {
    let addresses =
        |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|text| text.parse().unwrap()).collect() };
    let all = addresses(&["192.0.2.1", "198.51.100.1", "2001:db8::1"]);
    let primary = addresses(&["192.0.2.1", "2001:db8::1"]);
    let chosen = |choice: &NodePortAddresses| choice.choose(&primary, &all);
    assert_eq!(
        chosen(&NodePortAddresses::All),
        addresses(&["192.0.2.1", "198.51.100.1", "2001:db8::1", "127.0.0.1"])
    );
    assert_eq!(chosen(&NodePortAddresses::Primary), primary);
    let within = |text: &str| chosen(&NodePortAddresses::Within(vec![text.parse().unwrap()]));
    assert_eq!(within("198.51.100.0/24"), addresses(&["198.51.100.1"]));
    assert_eq!(within("127.0.0.0/8"), addresses(&["127.0.0.1"]));
    assert_eq!(within("2001:db8::/32"), addresses(&["2001:db8::1"]));
}
