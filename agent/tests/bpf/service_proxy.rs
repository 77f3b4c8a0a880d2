//! `orlop-agent proxy` as a DaemonSet runs it: its program with the manifest's capabilities and a kubeconfig as kubeadm writes one, a real
//! API server, endpoints that listen, clients in a control group and in a network namespace of their own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use harness::wait;
use linux::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

const MANIFEST: &str = include_str!("../../../xtask/deploy/orlop-proxy.yaml");
/// Long enough for a machine that is emulated.
const LIMIT: Duration = Duration::from_secs(60);
/// What a signal may take.
const END_LIMIT: Duration = Duration::from_secs(10);
const NODE: &str = "node-a";
const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const ENDPOINTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 0, 11), Ipv4Addr::new(10, 9, 0, 12)];
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);
const OTHER_CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 81);
const FOREIGN_CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 82);
const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
/// An endpoint on another node, and its Service.
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);
const FAR_CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 83);
const FAR_NODE_PORT: u16 = 30081;
/// A client outside.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
const PIN_ROOT: &str = "/sys/fs/bpf/orlop";
const HEALTHZ: u16 = 10256;
const METRICS: u16 = 10249;

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The control group hierarchy's root, as the proxy finds it by itself.
fn cgroup_root() -> PathBuf {
    let unified = PathBuf::from("/sys/fs/cgroup/unified");
    if unified.is_dir() { unified } else { "/sys/fs/cgroup".into() }
}

/// A machine with an uplink, an API server on it, and a pod.
struct Site {
    server: Child,
    data: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    client: kube::Client,
    clients: PathBuf,
    pod: Netns,
    /// Beyond the uplink: a client, and another node.
    world: Netns,
    far: Netns,
    /// Keeps a process in the pod's namespace.
    pause: Child,
}

impl Site {
    fn make() -> Self {
        harness::private_host::require();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let [first, second] = ENDPOINTS;
        for line in [
            "link add up0 type bridge".to_owned(),
            format!("addr add {NODE_ADDRESS}/24 dev up0"),
            "link set up0 up".to_owned(),
            format!("addr add {first}/32 dev up0"),
            format!("addr add {second}/32 dev up0"),
            "netns add pod".to_owned(),
            "link add pod0 type veth peer name eth0 netns pod".to_owned(),
            "addr add 10.9.1.1/24 dev pod0".to_owned(),
            "link set pod0 up".to_owned(),
            "-n pod addr add 10.9.1.2/24 dev eth0".to_owned(),
            "-n pod link set eth0 up".to_owned(),
            "-n pod route add default via 10.9.1.1".to_owned(),
            "netns add world".to_owned(),
            "link add world0 master up0 type veth peer name eth0 netns world".to_owned(),
            "link set world0 up".to_owned(),
            format!("-n world addr add {OUTSIDE}/24 dev eth0"),
            "-n world link set eth0 up".to_owned(),
            "netns add far".to_owned(),
            "link add far0 master up0 type veth peer name eth0 netns far".to_owned(),
            "link set far0 up".to_owned(),
            format!("-n far addr add {FAR}/24 dev eth0"),
            "-n far link set eth0 up".to_owned(),
        ] {
            ip(&line);
        }
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let pause =
            Command::new("ip").args(["netns", "exec", "pod", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        let clients = cgroup_root().join("clients");
        fs::create_dir(&clients).unwrap();
        let data = tempfile::tempdir().unwrap();
        let server = harness::server::start(&NODE_ADDRESS.to_string(), data.path());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let admin = data.path().join("admin.kubeconfig");
        let client = runtime.block_on(agent::api::client(&admin)).unwrap();
        let [pod, world, far] =
            ["pod", "world", "far"].map(|name| Netns::open(Path::new("/run/netns").join(name)).unwrap());
        Self { server, data, runtime, client, clients, pod, world, far, pause }
    }

    /// The identity to which every cluster binds the ClusterRole `system:node-proxier`, and nothing else: signed by the cluster's authority.
    fn identity(&self) -> String {
        let pki = self.data.path().join("pki");
        let [authority, key] = ["ca.crt", "ca.key"].map(|name| fs::read_to_string(pki.join(name)).unwrap());
        let issuer =
            rcgen::Issuer::from_ca_cert_pem(&authority, rcgen::KeyPair::from_pem(&key).unwrap()).unwrap();
        let mut wanted = rcgen::CertificateParams::default();
        wanted.distinguished_name = rcgen::DistinguishedName::new();
        wanted.distinguished_name.push(rcgen::DnType::CommonName, "system:kube-proxy");
        wanted.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = wanted.signed_by(&key, &issuer).unwrap();
        let file = |name: &str, text: String| {
            let path = self.data.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (certificate, key) =
            (file("proxy.crt", certificate.pem()), file("proxy.key", key.serialize_pem()));
        format!("client-certificate: {certificate}\n    client-key: {key}")
    }

    /// In the shape of kubeadm's ConfigMap.
    fn kubeconfig(&self) -> PathBuf {
        let path = self.data.path().join("kubeconfig.conf");
        let authority = self.data.path().join("pki/ca.crt");
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    certificate-authority: {}\n    server: \
             https://{NODE_ADDRESS}:1\n  name: default\ncontexts:\n- context:\n    cluster: default\n    namespace: \
             default\n    user: default\n  name: default\ncurrent-context: default\nusers:\n- name: default\n  user:\n    {}\n",
            authority.display(),
            self.identity(),
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// Where the proxy hears questions.
    fn questions(&self) -> PathBuf {
        self.data.path().join("proxy.sock")
    }

    /// What `orlopctl service` says.
    fn orlopctl(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orlopctl"));
        let output =
            command.arg("--socket").arg(self.questions()).arg("service").args(words).output().unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn told(&self, words: &[&str]) -> Value {
        let text = self.orlopctl(&[words, &["--json"]].concat()).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Asks the API server as its administrator.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, kube::Error> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.runtime.block_on(self.client.request(request.body(body).unwrap()))
    }

    fn create(&self, path: &str, object: &Value) {
        wait::until("the object is created", LIMIT, || {
            self.ask("POST", path, object).map(drop).map_err(|error| format!("{path}: {error}"))
        });
    }

    fn patch(&self, path: &str, patch: &Value) {
        self.ask("PATCH", path, patch).unwrap();
    }

    /// The Node, as a kubelet registers it.
    fn register(&self) {
        self.create(
            "/api/v1/nodes",
            &json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": NODE}}),
        );
        let addresses = json!([{"type": "InternalIP", "address": NODE_ADDRESS}]);
        self.patch(&format!("/api/v1/nodes/{NODE}/status"), &json!({"status": {"addresses": addresses}}));
    }

    /// A Service without selector, whose slice is [`Self::set_endpoints`]'s.
    fn add_service(&self, name: &str, cluster_ip: Ipv4Addr, labels: Value, node_port: Option<u16>) {
        let ports = json!([
            {"name": "tcp", "port": PORT, "nodePort": node_port}, {"name": "udp", "port": PORT, "nodePort": node_port, "protocol": "UDP"},
        ]);
        let kind = if node_port.is_some() { "NodePort" } else { "ClusterIP" };
        let spec = json!({"type": kind, "clusterIP": cluster_ip, "ports": ports});
        let metadata = json!({"name": name, "labels": labels});
        let service = json!({"kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": spec});
        self.create("/api/v1/namespaces/default/services", &service);
        let metadata = json!({"name": name, "labels": {"kubernetes.io/service-name": name}});
        let ports = json!([{"name": "tcp", "port": PORT, "protocol": "TCP"}, {"name": "udp", "port": PORT, "protocol": "UDP"}]);
        let slice = json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata, "addressType": "IPv4",
            "ports": ports, "endpoints": endpoints(&ENDPOINTS),
        });
        self.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice);
    }

    fn set_endpoints(&self, service: &str, addresses: &[Ipv4Addr]) {
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/{service}");
        self.patch(&path, &json!({"endpoints": endpoints(addresses)}));
    }

    /// The name that answers a client in a control group of its own.
    fn answer(&self, address: Ipv4Addr, port: u16) -> Result<String, String> {
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec 3<>/dev/tcp/{address}/{port} && read -t 10 -u 3 name && echo \"$name\"",
            self.clients.display()
        );
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned())
        } else {
            Err(told)
        }
    }

    /// Waits until every one of some names has answered, and since then so often no other one.
    fn answers_are(&self, address: Ipv4Addr, port: u16, names: &[Ipv4Addr]) {
        const OFTEN: usize = 12;
        let all: Vec<String> = names.iter().map(ToString::to_string).collect();
        wait::until("the endpoints answer", LIMIT, || {
            let last: Vec<String> =
                (0..OFTEN).map(|_| self.answer(address, port)).collect::<Result<_, _>>()?;
            let is_as_wanted =
                all.iter().all(|name| last.contains(name)) && last.iter().all(|name| all.contains(name));
            if is_as_wanted { Ok(()) } else { Err(format!("{last:?}")) }
        });
    }

    fn is_refused(&self, address: Ipv4Addr, why: &str) {
        wait::until("nobody answers", LIMIT, || match self.answer(address, PORT) {
            Err(told) if told.contains(why) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// A datagram socket of the pod that is connected through the Service, and has had an answer.
    fn connected_datagrams(&self) -> UdpSocket {
        wait::until("a datagram is answered", LIMIT, || {
            let connect = || {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.set_read_timeout(Some(Duration::from_secs(1)))?;
                socket.connect((CLUSTER_IP, PORT))?;
                socket.send(b"?")?;
                socket.recv(&mut [0; 64])?;
                Ok(socket)
            };
            self.pod.run(connect).unwrap().map_err(|error: std::io::Error| error.to_string())
        })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in [&mut self.server, &mut self.pause] {
            let _ = child.kill();
            let _ = child.wait();
        }
        for link in ["pod0", "world0", "far0", "up0"] {
            ip(&format!("link del {link}"));
        }
        for netns in ["pod", "world", "far"] {
            ip(&format!("netns del {netns}"));
        }
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        // `ip netns` mounts its folder onto itself.
        nix::mount::umount("/run/netns").unwrap();
        fs::remove_dir("/run/netns").unwrap();
        fs::remove_dir(&self.clients).unwrap();
    }
}

fn endpoints(addresses: &[Ipv4Addr]) -> Value {
    addresses.iter().map(|address| json!({"addresses": [address]})).collect()
}

fn bound(address: Ipv4Addr) -> (UdpSocket, TcpListener) {
    (UdpSocket::bind((address, PORT)).unwrap(), TcpListener::bind((address, PORT)).unwrap())
}

/// What listens at an endpoint: it says its name, then what it is told.
fn serve(address: Ipv4Addr, (datagrams, listener): (UdpSocket, TcpListener)) {
    std::thread::spawn(move || {
        while let Ok((_, peer)) = datagrams.recv_from(&mut [0; 64]) {
            let _ = datagrams.send_to(address.to_string().as_bytes(), peer);
        }
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let _ = stream.write_all(format!("{address}\n").as_bytes());
                let mut lines = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                while lines.read_line(&mut line).is_ok_and(|length| length > 0) {
                    let _ = stream.write_all(line.as_bytes());
                    line.clear();
                }
            });
        }
    });
}

fn documents() -> impl Iterator<Item = Value> {
    serde_yaml_ng::Deserializer::from_str(MANIFEST).map(|document| Value::deserialize(document).unwrap())
}

/// The manifest's capabilities, in setpriv's words.
fn capabilities() -> String {
    let daemon_set = documents().find(|document| document["kind"] == "DaemonSet").unwrap();
    let container = &daemon_set["spec"]["template"]["spec"]["containers"][0];
    let added = container["securityContext"]["capabilities"]["add"].as_array().unwrap();
    added.iter().map(|name| format!(",+{}", name.as_str().unwrap().to_lowercase())).collect()
}

/// The program with no other capability than a container of the manifest has.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    let bounding = format!("--bounding-set=-all{}", capabilities());
    command
        .args([&bounding, "--inh-caps=-all", "--", env!("CARGO_BIN_EXE_orlop-agent"), "proxy"])
        .args(arguments);
    command.env_remove("RUST_LOG");
    command
}

struct Proxy {
    child: Child,
    log: PathBuf,
}

impl Proxy {
    fn start(site: &Site) -> Self {
        let kubeconfig = site.kubeconfig();
        let log = site.data.path().join("proxy.log");
        let master = format!("https://{NODE_ADDRESS}:6443");
        let name = NODE.to_uppercase();
        let mut command =
            command(&["--kubeconfig", kubeconfig.to_str().unwrap(), "--hostname-override", &name]);
        command
            .args(["--master", &master, "--bpf-pin-root", PIN_ROOT, "--admin-socket"])
            .arg(site.questions());
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it, and says how it ended.
    fn end(mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        wait::until("the proxy ends", END_LIMIT, || match self.child.try_wait().unwrap() {
            Some(status) => Ok(status),
            None => Err(self.log()),
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the proxy's log:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs it to its end: how it ended, and what it said.
fn run(arguments: &[&str]) -> (bool, String) {
    let output = command(arguments).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A page of the proxy's: the status, and everything it said.
fn page(port: u16, path: &str) -> Result<(String, String), String> {
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let mut stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok((text.split(' ').nth(1).unwrap_or_default().to_owned(), text))
}

fn page_is(port: u16, path: &str, status: &str) -> String {
    wait::until(path, LIMIT, || match page(port, path)? {
        (found, text) if found == status => Ok(text),
        (_, text) => Err(text),
    })
}

/// Sends a line to an endpoint and has it back.
fn echo(stream: &mut BufReader<TcpStream>, line: &str) {
    stream.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_line(&mut answer).unwrap();
    assert_eq!(answer.trim(), line);
}

fn connect() -> BufReader<TcpStream> {
    let stream = TcpStream::connect((CLUSTER_IP, PORT)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut stream = BufReader::new(stream);
    stream.read_line(&mut String::new()).unwrap();
    stream
}

/// Programs of ours that the kernel has attached to control groups and links, as `bpftool` sees them.
fn attached() -> usize {
    let shown = |arguments: &[&str]| {
        let output = Command::new("bpftool").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().matches("orlop_").count()
    };
    shown(&["cgroup", "tree", cgroup_root().to_str().unwrap()]) + shown(&["net", "show"])
}

/// An agent that served the node before knew the addresses of its clients.
fn leave_what_an_agent_told() {
    let options = dataplane::Options {
        pin_root: PIN_ROOT.into(),
        cgroup: cgroup_root(),
        uplinks: Vec::new(),
        uplink_hook: dataplane::UplinkHook::default(),
        uplink_acceleration: dataplane::Acceleration::default(),
    };
    let mut dataplane = dataplane::Dataplane::open(&options).unwrap();
    let own = Netns::current().unwrap().cookie().unwrap();
    dataplane.set_client(own, &[NODE_ADDRESS.into()]).unwrap();
    assert_eq!(clients(), 1);
}

/// How many network namespaces the dataplane knows the addresses of.
fn clients() -> usize {
    let layout = fs::read_dir(PIN_ROOT).unwrap().next().unwrap().unwrap().path();
    let pin = layout.join("ORLOP_CLIENTS");
    let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(pin).output().unwrap();
    serde_json::from_slice::<Vec<Value>>(&output.stdout).unwrap().len()
}

#[test]
fn the_proxy_stands_in_for_kube_proxy_beside_any_kubelet() {
    let site = Site::make();
    ENDPOINTS.into_iter().for_each(|address| serve(address, bound(address)));
    let proxy = Proxy::start(&site);

    // Healthy and patient while there is no Node.
    page_is(HEALTHZ, "/healthz", "200");
    let told = || proxy.log().contains("there is no such Node").then_some(()).ok_or_else(|| proxy.log());
    wait::until("the missing Node is told", LIMIT, told);
    assert!(!Path::new(PIN_ROOT).exists());
    leave_what_an_agent_told();
    site.register();
    site.add_service("web", CLUSTER_IP, json!({}), Some(NODE_PORT));
    site.add_service(
        "foreign",
        FOREIGN_CLUSTER_IP,
        json!({"service.kubernetes.io/service-proxy-name": "other"}),
        None,
    );
    site.answers_are(CLUSTER_IP, PORT, &ENDPOINTS);
    site.answers_are(NODE_ADDRESS, NODE_PORT, &ENDPOINTS);
    site.answers_are(Ipv4Addr::LOCALHOST, NODE_PORT, &ENDPOINTS);
    let not_led = site.answer(FOREIGN_CLUSTER_IP, PORT).unwrap_err();
    assert!(not_led.contains("Network is unreachable"), "{not_led}");
    assert!(attached() > 0);
    assert_eq!(clients(), 0, "nobody keeps their addresses up to date");
    let figures = page_is(METRICS, "/metrics", "200");
    for name in ["orlop_dataplane_frontends ", "orlop_dataplane_events_total{kind=\"connect_translated\"} "] {
        let value =
            figures.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{figures}"));
        assert!(value.parse::<u64>().unwrap() > 0, "{name}{value}");
    }

    // Nobody else takes its place while it runs.
    let admin = site.data.path().join("admin.kubeconfig");
    let nowhere = ["--healthz-bind-address=", "--metrics-bind-address=", "--hostname-override", NODE];
    let second = [&["--kubeconfig", admin.to_str().unwrap()], nowhere.as_slice()].concat();
    for arguments in [second.as_slice(), &["--cleanup"]] {
        let (succeeded, said) = run(arguments);
        assert!(!succeeded && said.contains(&format!("another process has {PIN_ROOT} open")), "{said}");
    }

    explains_services(&site);
    leads_in_from_outside(&site);
    let proxy = outlives_its_process(&site, proxy);
    follows_the_endpoints(&site);
    goes_with_the_node(&site);
    is_removed(&site, proxy);
    manifest_is_taken(&site);
}

/// People are told of a Service by its name, whatever address was asked, and scrapers too.
fn explains_services(site: &Site) {
    let all = site.told(&["ls"]);
    let web = all["items"].as_array().unwrap().iter().find(|row| row["name"] == "web").unwrap();
    let number = |value: &Value| value.as_u64().unwrap();
    assert_eq!((&web["type"], number(&web["endpoints"])), (&json!("NodePort"), 2));
    assert_eq!(web["ports"], json!(["80:30080/TCP", "80:30080/UDP"]));
    assert!(number(&web["flows"]) >= 36, "{web}");
    let names: Vec<&Value> = all["items"].as_array().unwrap().iter().map(|row| &row["name"]).collect();
    assert!(!names.contains(&&json!("foreign")), "{names:?}");
    assert_eq!(site.told(&["ls", "-n", "kube-system"])["total"], 0);

    let figures = page_is(METRICS, "/metrics", "200");
    let series = "orlop_service_flows_total{namespace=\"default\",service=\"web\",port=\"80\",port_name=\"tcp\",protocol=\"TCP\"} ";
    let flows =
        figures.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("{figures}"));
    assert_eq!(flows.parse::<u64>().unwrap(), number(&web["flows"]), "{figures}");
    assert!(figures.contains("orlop_dataplane_drops_total{reason=\"connect_no_backend\"} "), "{figures}");

    let address = format!("{CLUSTER_IP}:{PORT}/TCP");
    let by_name = site.told(&["get", "default/web"]);
    assert_eq!(site.told(&["get", &address]), by_name);
    let frontends = by_name["frontends"].as_array().unwrap();
    let cluster_ip = frontends.iter().find(|frontend| frontend["address"] == address).unwrap();
    assert_eq!(
        (&cluster_ip["kind"], number(&cluster_ip["kernel"]["inside"]["length"])),
        (&json!("cluster IP"), 2)
    );
    let listed = site.told(&["backends", "default/web"]);
    assert_eq!((number(&listed["total"]), &listed["items"][0]["services"]), (2, &json!(["default/web:80"])));

    let trace = site.told(&["trace", &address, "--from", "node"]);
    assert_eq!((&trace["verdict"], &trace["service"]), (&json!("one of"), &json!("default/web")), "{trace}");
    let candidates = trace["candidates"]["items"].as_array().unwrap();
    let led: Vec<String> = candidates.iter().map(|one| one["address"].as_str().unwrap().to_owned()).collect();
    assert_eq!(led, ENDPOINTS.map(|endpoint| format!("{endpoint}:{PORT}")));
    let text = site.orlopctl(&["trace", &format!("{CLUSTER_IP}:81"), "--from", "192.0.2.99"]).unwrap();
    assert!(text.contains(&format!("{CLUSTER_IP} answers at 80/TCP, 80/UDP, not at 81/TCP")), "{text}");
    let error = site.orlopctl(&["trace", &format!("{CLUSTER_IP}:{PORT}"), "--from", "node"]).unwrap_err();
    assert!(error.contains("answers over several protocols: say which"), "{error}");
    let error = site.orlopctl(&["trace", &address, "--from", "pod:default/web-0"]).unwrap_err();
    assert!(error.contains("this agent does not run the pods"), "{error}");
    let error = site.orlopctl(&["get", "default/foreign"]).unwrap_err();
    assert!(error.contains("left to another proxy"), "{error}");
    let error = site.orlopctl(&["get", "default/nothing"]).unwrap_err();
    assert!(error.contains("there is no Service default/nothing"), "{error}");
}

/// A client outside reaches an endpoint on another node through a port of this one, and hears this one. Its packets are made by hand:
/// sockets of this test are led like those of the node, wherever they are.
fn leads_in_from_outside(site: &Site) {
    serve(FAR, site.far.run(|| bound(FAR)).unwrap());
    site.add_service("far", FAR_CLUSTER_IP, json!({}), Some(FAR_NODE_PORT));
    site.set_endpoints("far", &[FAR]);
    let open = || -> std::io::Result<(UdpSocket, Socket)> {
        let own = UdpSocket::bind((OUTSIDE, 0))?;
        own.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok((own, Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP))?))
    };
    let (own, raw) = site.world.run(open).unwrap().unwrap();
    const LENGTH: u16 = 9;
    let port = own.local_addr().unwrap().port();
    // The header of UDP without a checksum, and one byte.
    let mut packet: Vec<u8> =
        [port, FAR_NODE_PORT, LENGTH, 0].into_iter().flat_map(u16::to_be_bytes).collect();
    packet.push(b'?');
    let node = SocketAddr::new(NODE_ADDRESS.into(), FAR_NODE_PORT);
    wait::until("the other node's endpoint answers", LIMIT, || {
        raw.send_to(&packet, &SocketAddr::new(NODE_ADDRESS.into(), 0).into())
            .map_err(|error| error.to_string())?;
        let mut name = [0; 64];
        match own.recv_from(&mut name) {
            Ok((length, from)) if from == node && name[..length] == *FAR.to_string().as_bytes() => Ok(()),
            other => Err(format!("{other:?}: {}", String::from_utf8_lossy(&name))),
        }
    });
}

/// What is programmed goes on after a kill; what changed meanwhile is taken over.
fn outlives_its_process(site: &Site, proxy: Proxy) -> Proxy {
    let mut connection = connect();
    echo(&mut connection, "before");
    assert!(!proxy.end(Signal::SIGKILL).success());
    echo(&mut connection, "without a proxy");
    site.answers_are(CLUSTER_IP, PORT, &ENDPOINTS);
    site.set_endpoints("web", &ENDPOINTS[1..]);
    site.add_service("other", OTHER_CLUSTER_IP, json!({}), None);
    let proxy = Proxy::start(site);
    site.answers_are(CLUSTER_IP, PORT, &ENDPOINTS[1..]);
    site.answers_are(OTHER_CLUSTER_IP, PORT, &ENDPOINTS);
    echo(&mut connection, "after");
    proxy
}

/// Without an endpoint connections are refused, and connected datagram sockets of pods are told.
fn follows_the_endpoints(site: &Site) {
    let datagrams = site.connected_datagrams();
    site.set_endpoints("web", &[]);
    site.is_refused(CLUSTER_IP, "Connection refused");
    let worst = &site.told(&["drops"])[0];
    assert_eq!(worst["reason"], "connect_no_backend", "{worst}");
    let address = format!("{CLUSTER_IP}:{PORT}/TCP");
    assert_eq!(site.told(&["trace", &address, "--from", "node"])["verdict"], "refused");
    let web = &site.told(&["get", &address])["frontends"];
    let cluster_ip = web.as_array().unwrap().iter().find(|frontend| frontend["address"] == address).unwrap();
    assert!(cluster_ip["refused_no_endpoint"].as_u64() > Some(0), "{cluster_ip}");
    wait::until("the pod's socket is ended", LIMIT, || match datagrams.recv(&mut [0; 64]) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => Ok(()),
        other => Err(format!("{other:?}")),
    });
    site.set_endpoints("web", &ENDPOINTS);
    site.answers_are(CLUSTER_IP, PORT, &ENDPOINTS);
}

/// A Node that the autoscaler is about to take away gets no traffic from load balancers, and no restart.
fn goes_with_the_node(site: &Site) {
    let node = format!("/api/v1/nodes/{NODE}");
    let taints = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    site.patch(&node, &json!({"spec": {"taints": taints}}));
    assert!(page_is(HEALTHZ, "/healthz", "503").contains("\"nodeEligible\":false"));
    page_is(HEALTHZ, "/livez", "200");
}

/// The end of the process changes nothing; only cleaning up does.
fn is_removed(site: &Site, proxy: Proxy) {
    assert!(proxy.end(Signal::SIGTERM).success());
    site.answers_are(CLUSTER_IP, PORT, &ENDPOINTS);
    let (succeeded, said) = run(&["--cleanup"]);
    assert!(succeeded, "{said}");
    assert!(!Path::new(PIN_ROOT).exists());
    site.is_refused(CLUSTER_IP, "Network is unreachable");
    let gone = || if attached() == 0 { Ok(()) } else { Err(format!("{} are attached", attached())) };
    wait::until("no program is attached", LIMIT, gone);
    assert!(run(&["--cleanup"]).0, "what is gone already is fine");
}

/// The API server takes every object of the manifest whose kind it has; the others' types are checked beside the settings.
fn manifest_is_taken(site: &Site) {
    let mut taken = Vec::new();
    for document in documents() {
        let (kind, version) = (document["kind"].as_str().unwrap(), document["apiVersion"].as_str().unwrap());
        let group = if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") };
        let served =
            site.ask("GET", &group, &Value::Null).map_or(Value::Null, |list| list["resources"].clone());
        if !served.as_array().into_iter().flatten().any(|resource| resource["kind"] == kind) {
            continue;
        }
        let is_namespaced = !document["metadata"]["namespace"].is_null();
        let namespace = if is_namespaced { "/namespaces/kube-system" } else { "" };
        let path = format!("{group}{namespace}/{}s?fieldValidation=Strict", kind.to_lowercase());
        let object = site.ask("POST", &path, &document).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(object["metadata"]["name"], document["metadata"]["name"]);
        taken.push(kind.to_owned());
    }
    assert!(
        ["ServiceAccount", "ConfigMap"].iter().all(|kind| taken.iter().any(|taken| taken == kind)),
        "{taken:?}"
    );
}
