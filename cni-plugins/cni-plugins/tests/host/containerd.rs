//! Debian's containerd, told by its own configuration where plugins and networks are: pods keep, get and give back their network.
//!
//! The test is the kubelet: it speaks CRI ([`cri`]) to containerd, which runs runc and the plugins. As on a node that is switched over
//! (docs/cni.md), one pod is there already, by the reference plugins, when ours take their place. What counts is what others see: who
//! answers where, the namespace of the container's process, and the host's links, rules and files.

mod cri;

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use linux::{
    machine::{self, Leaf},
    netlink::Netlink,
    netns::{self, Netns},
    process,
};
use serde_json::{Value, json};

use self::cri::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, Cri, Id, ImageSpec, ImageStatusRequest,
    ImageStatusResponse, LinuxContainerConfig, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata,
    PodSandboxStatusResponse, PortMapping, RunPodSandboxRequest, RuntimeCondition, StatusResponse,
};
use super::{
    node::{Container, Node, PACKET_LIMIT, bin_dir, block_on, host_links, nft},
    outside::{HOST, OUTSIDE, Outside},
};

/// The folder of the reference plugins' executables.
const REFERENCE: &str = "ORLOP_REFERENCE_PLUGINS";
/// The folder with `runc`.
const RUNC: &str = "ORLOP_RUNC";
/// The folder of the test images' archives.
const IMAGES: &str = "ORLOP_IMAGES";
/// What the configuration names, and `loopback`, which containerd adds.
const PLUGINS: [&str; 5] = ["bridge", "host-local", "portmap", "bandwidth", "loopback"];
/// Answers each line with the pod's name and the address that the line came from.
const IMAGE: &str = "localhost/echo:v1";
const INSIDE_PORT: u16 = 80;
/// Bits a second that a pod may send, and the same in bytes.
const EGRESS: (&str, u64) = ("8M", 1_000_000);
const PODS_CGROUP: &str = "/pods";
/// Where containerd listens and keeps what lasts until a reboot, by default.
const STATE: &str = "/run/containerd";
/// Where libcni keeps results.
const CACHE: &str = "/var/lib/cni/results";
const SHIM: &str = "containerd-shim-runc-v2";
/// For whatever is waited for; an emulated machine is slow.
const LIMIT: Duration = Duration::from_secs(120);
const SIGTERM: i32 = 15;

/// A running containerd, all of whose files are in the private host's own folders.
struct Containerd {
    child: Child,
    folder: tempfile::TempDir,
    /// The folders of libcni's cache that the machine does not have.
    cache: Vec<&'static Path>,
    cri: Cri,
}

impl Containerd {
    /// `programs` is the folder of its executables. It gets plugins and networks from folders of the node.
    fn start(programs: &Path, node: &Node) -> Self {
        // Not below /tmp: if the test fails in between, what is mounted here goes with the private host.
        let folder = tempfile::tempdir_in("/run").expect("a folder");
        let config = folder.path().join("config.toml");
        fs::write(&config, configuration(folder.path(), node)).expect("the configuration");
        let log = fs::File::create(folder.path().join("log")).expect("a log");
        let old = std::env::var_os("PATH").expect("a path of programs");
        let found = [PathBuf::from(variable(RUNC)), programs.to_owned()].into_iter();
        let path = std::env::join_paths(found.chain(std::env::split_paths(&old))).expect("folders");
        let child = Command::new(programs.join("containerd"))
            .arg("--config")
            .arg(config)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("containerd starts");
        let cri = Cri::new(&Path::new(STATE).join("containerd.sock"), LIMIT);
        let cache = Path::new(CACHE).ancestors().take_while(|folder| !folder.exists()).collect();
        let containerd = Self { child, folder, cache, cri };
        harness::wait::until("containerd's answer", LIMIT, || containerd.conditions());
        containerd.import(programs);
        containerd
    }

    fn import(&self, programs: &Path) {
        let archive = Path::new(&variable(IMAGES)).join("echo.tar");
        let import = Command::new(programs.join("ctr"))
            .args(["-n", "k8s.io", "images", "import"])
            .arg(archive)
            .output();
        let import = import.expect("ctr starts");
        assert!(import.status.success(), "ctr: {}", String::from_utf8_lossy(&import.stderr));
        // CRI learns of images by events.
        harness::wait::until("the image", LIMIT, || {
            let request = ImageStatusRequest { image: Some(image()) };
            let known = self.cri.call("ImageService/ImageStatus", request);
            let known: ImageStatusResponse = known.map_err(|error| error.to_string())?;
            known.image.ok_or_else(|| "CRI does not know it".to_owned())
        });
    }

    fn conditions(&self) -> Result<Vec<RuntimeCondition>, String> {
        let answer = self.cri.call("RuntimeService/Status", ());
        let answer: StatusResponse = answer.map_err(|error| error.to_string())?;
        Ok(answer.status.unwrap_or_default().conditions)
    }

    /// Whether the network is, and if not, why.
    fn network_is_ready(&self) -> Result<(), String> {
        let conditions = self.conditions().expect("an answer");
        let network = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady");
        let network = network.expect("a condition");
        if network.status { Ok(()) } else { Err(network.message) }
    }

    /// Ends it, whose pods are gone already, and takes away what it leaves.
    fn end(mut self) {
        let pidfd = process::pidfd(self.child.id().cast_signed()).expect("it runs");
        process::signal(pidfd.as_fd(), SIGTERM).expect("a signal");
        let status = harness::wait::until("containerd's end", LIMIT, || {
            self.child.try_wait().expect("its status").ok_or_else(|| "it runs".to_owned())
        });
        assert!(status.success(), "{status}");
        // A shim answers that it shuts down before it does.
        harness::wait::until("the end of shims", LIMIT, || {
            let programs = process::list().expect("processes").into_iter().map(process::arguments_of);
            let shims: Vec<_> =
                programs.filter(|words| words.iter().any(|word| word.ends_with(SHIM))).collect();
            if shims.is_empty() { Ok(()) } else { Err(format!("{shims:?}")) }
        });
        let hierarchies = machine::hierarchies().expect("control groups");
        Leaf::named(hierarchies, PODS_CGROUP).remove().expect("the pods' group is removed");
        fs::remove_dir_all(STATE).expect("its state is removed");
        for folder in &self.cache {
            fs::remove_dir(folder).expect("the cache is empty");
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log"));
            eprintln!("containerd said:\n{}", log.unwrap_or_default());
        }
    }
}

/// The keys of CNI are those of Debian's `/etc/containerd/config.toml`. The rest keeps containerd inside the private host: no files, profiles
/// of AppArmor or NRI plugins of the machine, and no privilege that it may lack.
fn configuration(folder: &Path, node: &Node) -> String {
    format!(
        r#"
version = 2
root = "{folder}/root"
disabled_plugins = ["io.containerd.nri.v1.nri"]

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin}"
    conf_dir = "{networks}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
"#,
        folder = folder.display(),
        bin = node.path("bin").display(),
        networks = node.path("net.d").display(),
    )
}

/// A chain as nodes have it, with addresses for two pods and backends that both implementations know.
fn network(node: &Node, version: &str) -> Value {
    let mut bridge = node.config(version);
    bridge["ipMasq"] = json!(true);
    bridge["ipMasqBackend"] = json!("nftables");
    bridge["ipam"]["ranges"] = json!([
        [{"subnet": "10.97.0.0/24", "rangeEnd": "10.97.0.3"}],
        [{"subnet": "fd97::/64", "rangeEnd": "fd97::3"}],
    ]);
    let portmap = json!({"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}});
    let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    json!({"cniVersion": version, "name": "pods", "plugins": [bridge, portmap, bandwidth]})
}

/// Puts plugins in place as docs/cni.md says: each by a rename.
fn drop_in(from: &Path, bin: &Path) {
    fs::create_dir_all(bin).expect("a folder");
    for plugin in PLUGINS {
        fs::copy(from.join(plugin), bin.join(".new")).expect("a copy");
        fs::rename(bin.join(".new"), bin.join(plugin)).expect("its name");
    }
}

fn variable(name: &str) -> OsString {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is set by `cargo xtask test`"))
}

fn image() -> ImageSpec {
    ImageSpec { image: IMAGE.to_owned() }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect(text)
}

/// A pod with one container, which serves [`INSIDE_PORT`].
struct Pod<'a> {
    cri: &'a Cri,
    name: &'static str,
    host_port: u16,
    id: String,
    container_id: String,
}

impl<'a> Pod<'a> {
    fn run(cri: &'a Cri, name: &'static str, host_port: u16) -> Self {
        let metadata =
            PodSandboxMetadata { name: name.into(), uid: name.into(), namespace: "default".into() };
        let port = PortMapping { container_port: INSIDE_PORT.into(), host_port: host_port.into() };
        let pod = PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.into(),
            port_mappings: vec![port],
            annotations: [("kubernetes.io/egress-bandwidth".into(), EGRESS.0.into())].into(),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: PODS_CGROUP.into() }),
        };
        let request = RunPodSandboxRequest { config: Some(pod.clone()) };
        let Id { id } = cri.call("RuntimeService/RunPodSandbox", request).expect("a pod");
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "echo".into() }),
            image: Some(image()),
            args: vec!["serve".into(), INSIDE_PORT.to_string()],
            linux: Some(LinuxContainerConfig {}),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: id.clone(),
            config: Some(container),
            sandbox_config: Some(pod),
        };
        let container: Id = cri.call("RuntimeService/CreateContainer", request).expect("a container");
        let () = cri.call("RuntimeService/StartContainer", container.clone()).expect("it starts");
        Self { cri, name, host_port, id, container_id: container.id }
    }

    /// What the kubelet is told, what the container has, where it gets, and who gets to it.
    fn has_network(&self, addresses: [&str; 2], outside: &Outside) {
        assert_eq!(self.told(), addresses, "{}", self.name);
        let inside = self.namespace();
        let state = inside.state();
        for line in [
            format!("address {}/24 on eth0", addresses[0]),
            format!("address {}/64 on eth0", addresses[1]),
            "route 0.0.0.0/0 via Some(10.97.0.1) on eth0 table 254".to_owned(),
            "route ::/0 via Some(fd97::1) on eth0 table 254".to_owned(),
        ] {
            assert!(state.contains(&line), "{}: {line} is not in {state:#?}", self.name);
        }
        for (far, masqueraded) in OUTSIDE.into_iter().zip(HOST) {
            assert_eq!(inside.talks_to(Some(&outside.machine), address(far)), address(masqueraded));
        }
        let direct = SocketAddr::new(address(addresses[0]), INSIDE_PORT);
        assert_eq!(answer(None, direct), format!("{} 10.97.0.1\n", self.name));
        assert_eq!(
            answer(Some(&outside.machine), self.published()),
            format!("{} {}\n", self.name, OUTSIDE[0])
        );
    }

    /// Whether our `bridge` attached it.
    fn is_ours(&self) -> bool {
        let alias = format!("cni:pods:{}:eth0", self.id);
        host_links().iter().any(|link| link.alias.as_ref() == Some(&alias))
    }

    fn told(&self) -> Vec<String> {
        let answer = self.cri.call("RuntimeService/PodSandboxStatus", Id { id: self.id.clone() });
        let answer: PodSandboxStatusResponse = answer.expect("its status");
        let network = answer.status.and_then(|status| status.network).expect("a network");
        let others = network.additional_ips.into_iter().map(|other| other.id);
        [network.ip].into_iter().chain(others).collect()
    }

    /// That of the container's own process.
    fn namespace(&self) -> Container {
        let hierarchies = machine::hierarchies().expect("control groups");
        let group = Leaf::named(hierarchies, format!("{PODS_CGROUP}/{}", self.container_id));
        let pid = *group.processes().first().expect("a process of the container");
        let netns = Netns::open(format!("/proc/{pid}/ns/net")).expect("its namespace");
        let path = Path::new("/run/netns").join(self.name);
        netns::bind(&netns, &path).expect("a name for it");
        Container { id: self.name.to_owned(), netns: Netns::open(path).expect("the namespace") }
    }

    fn published(&self) -> SocketAddr {
        SocketAddr::new(address(HOST[0]), self.host_port)
    }

    /// What is said of it anywhere.
    fn traces(&self) -> Vec<String> {
        let rules = nft(&["list", "ruleset"]);
        let rules = rules.lines().map(|line| line.trim().to_owned());
        let files = fs::read_dir(CACHE).expect("the cache").flatten();
        let files = files.map(|file| file.file_name().to_string_lossy().into_owned());
        rules.chain(files).filter(|line| line.contains(&self.id)).collect()
    }

    fn remove(self, outside: &Outside) {
        assert!(!self.traces().is_empty());
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let method = format!("RuntimeService/{method}");
            let () = self.cri.call(&method, Id { id: self.id.clone() }).expect("it goes");
        }
        assert_eq!(self.traces(), Vec::<String>::new());
        let error = connect(Some(&outside.machine), self.published()).expect_err("nobody is there");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

fn connect(from: Option<&Container>, to: SocketAddr) -> std::io::Result<TcpStream> {
    let connect = || TcpStream::connect_timeout(&to, PACKET_LIMIT);
    match from {
        Some(machine) => machine.netns.run(connect).expect("a thread"),
        None => connect(),
    }
}

/// The server's answer, once it listens.
fn answer(from: Option<&Container>, to: SocketAddr) -> String {
    let mut stream = harness::wait::until(&format!("the server at {to}"), LIMIT, || {
        connect(from, to).map_err(|error| error.to_string())
    });
    stream.set_read_timeout(Some(PACKET_LIMIT)).expect("a limit");
    stream.write_all(b"hello\n").expect("a write");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("an answer");
    line
}

/// The rates of the links that limit what pods send.
fn limits() -> Vec<u64> {
    let ifbs = host_links().into_iter().filter(|link| link.is_kind("ifb"));
    block_on(async {
        let host = Netlink::open().expect("a socket");
        let mut rates = Vec::new();
        for ifb in ifbs {
            let bucket = host.token_bucket(ifb.index).await.expect("its queue");
            rates.push(bucket.expect("a token bucket").rate);
        }
        rates
    })
}

fn names_of_links() -> Vec<String> {
    host_links().into_iter().map(|link| link.name).collect()
}

/// `programs` names containerd's folder; `version` is the newest of the specification that it knows. From 1.1.0 on, containerd asks for
/// STATUS whenever the kubelet asks whether the network is ready.
fn goes_on_with_ours(programs: &str, version: &str) {
    let node = Node::new();
    let outside = Outside::new();
    let bin = node.path("bin");
    drop_in(Path::new(&variable(REFERENCE)), &bin);
    fs::create_dir(node.path("net.d")).expect("a folder");
    fs::write(node.path("net.d/10-pods.conflist"), network(&node, version).to_string()).expect("a file");
    let mut links = names_of_links();

    let containerd = Containerd::start(Path::new(&variable(programs)), &node);
    assert_eq!(containerd.network_is_ready(), Ok(()));
    let older = Pod::run(&containerd.cri, "older", 8081);
    drop_in(bin_dir(), &bin);
    assert_eq!(containerd.network_is_ready(), Ok(()));
    let newer = Pod::run(&containerd.cri, "newer", 8082);
    older.has_network(["10.97.0.2", "fd97::2"], &outside);
    newer.has_network(["10.97.0.3", "fd97::3"], &outside);
    assert_eq!([older.is_ours(), newer.is_ours()], [false, true]);
    assert_eq!(limits(), [EGRESS.1; 2]);
    // Every address is taken, which is no trouble of the node's; leases that cannot be read are.
    assert_eq!(containerd.network_is_ready(), Ok(()));
    let (leases, aside) = (node.path("leases/pods"), node.path("leases/aside"));
    fs::rename(&leases, &aside).expect("another name");
    fs::write(&leases, "").expect("a file");
    assert_eq!(containerd.network_is_ready().is_ok(), version < "1.1.0");
    fs::remove_file(&leases).expect("it is removed");
    fs::rename(&aside, &leases).expect("its name");

    older.remove(&outside);
    assert_eq!(containerd.network_is_ready(), Ok(()));
    newer.has_network(["10.97.0.3", "fd97::3"], &outside);
    newer.remove(&outside);
    assert_eq!(node.leases(), Vec::<String>::new());
    links.push("cni0".to_owned());
    assert_eq!(names_of_links(), links);
    containerd.end();
}

#[test]
fn that_of_this_release_goes_on_with_ours() {
    goes_on_with_ours("ORLOP_CONTAINERD", "1.0.0");
}

#[test]
fn that_of_sid_goes_on_with_ours() {
    goes_on_with_ours("ORLOP_CONTAINERD_SID", "1.1.0");
}
