//! What the tests stand on: containers (network namespaces), calls of the executables, and the kernel's state as text.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::LazyLock,
    time::Duration,
};

use ipnetwork::IpNetwork;
use linux::{
    netlink::{
        AddressFlags, BridgeOptions, Link, LinkKind, MacAddress, Netlink, NewAddress, NewLink, Parent,
        VethOptions, VethPeer,
    },
    netns::{self, Netns},
};
use serde_json::{Value, json};

/// What makes a configuration another one.
pub type Change = fn(&mut Value);

/// Packets here cross nothing but memory.
pub const PACKET_LIMIT: Duration = Duration::from_secs(5);

/// How long what a plugin does in the background may take.
const BACKGROUND_LIMIT: Duration = Duration::from_secs(60);

/// A private host with a folder for leases; it takes along the bridges that plugins leave, and waits for what they do in the background.
pub struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    pub fn new() -> Self {
        harness::private_host::require();
        Self { dir: tempfile::tempdir().expect("a folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A bridge with addresses of both families, as a node's network has it.
    pub fn config(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "pods", "type": "bridge", "bridge": "cni0", "isDefaultGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": self.path("leases"),
                "ranges": [[{"subnet": "10.97.0.0/24"}], [{"subnet": "fd97::/64"}]],
            },
        })
    }

    /// Addresses that are leased, by name.
    pub fn leases(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path("leases/pods")) else { return Vec::new() };
        let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
        let mut leases: Vec<String> = names.filter(|name| name.parse::<IpAddr>().is_ok()).collect();
        leases.sort();
        leases
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        wait_for_plugins();
        block_on(async {
            let netlink = Netlink::open().expect("a socket");
            for bridge in
                netlink.links().await.expect("the links").iter().filter(|link| link.is_kind("bridge"))
            {
                netlink.del_link(bridge.index).await.expect("the bridge is deleted");
            }
        });
    }
}

/// A wire from the host to itself: what stands on `up0` reaches the host's addresses on `up1`.
pub struct Wire;

impl Wire {
    pub const MASTER: &str = "up0";

    pub fn new() -> Self {
        block_on(async {
            let host = Netlink::open().expect("a socket");
            let peer = VethPeer { name: "up1".to_owned(), mtu: None, mac: None, netns: None };
            let name = Self::MASTER.to_owned();
            let pair = VethOptions { name, mtu: None, mac: None, master: None, group: None, up: true, peer };
            host.add_veth(&pair).await.expect("a pair");
            let far = host.link("up1").await.expect("its other end").index;
            for address in ["10.97.0.1/24", "fd97::1/64"] {
                let network = address.parse().expect(address);
                let new = NewAddress { flags: AddressFlags::Nodad, ..NewAddress::new(far, network) };
                host.add_address(&new).await.expect("an address");
            }
            host.set_link_up(far).await.expect("it goes up");
        });
        Self
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        block_on(async {
            let host = Netlink::open().expect("a socket");
            let near = host.link(Self::MASTER).await.expect("it is there").index;
            host.del_link(near).await.expect("it goes");
        });
    }
}

/// Whether the kernel can make links of this kind. Where it cannot, the calling test says so and is skipped.
pub fn has_kind(kind: LinkKind) -> bool {
    let place = Container::new("probe");
    let made = block_on(async {
        let inside = Netlink::open_in(&place.netns).expect("a socket");
        let bridge = BridgeOptions { name: "below".to_owned(), ..BridgeOptions::default() };
        inside.add_bridge(&bridge).await.expect("a bridge");
        let index = inside.link("below").await.expect("it is there").index;
        let parent = match kind {
            LinkKind::Dummy | LinkKind::Vrf { .. } => None,
            _ => Some(Parent { index, netns: None }),
        };
        inside.add_link(&NewLink { parent, ..NewLink::new("above", kind) }).await
    });
    match made {
        Err(error) if error.is_unsupported() => {
            harness::skip::skip(&format!("the kernel does not have this kind of link: {error}"));
            false
        }
        made => {
            made.expect("a link");
            true
        }
    }
}

/// A container's network namespace, and its name.
pub struct Container {
    pub id: String,
    pub netns: Netns,
}

impl Container {
    pub fn new(id: &str) -> Self {
        let netns = netns::create(Path::new("/run/netns").join(id)).expect("a namespace");
        Self { id: id.to_owned(), netns }
    }

    pub fn path(&self) -> &str {
        self.netns.path().to_str().expect("a path of letters")
    }

    pub fn link(&self, name: &str) -> Option<Link> {
        block_on(async {
            let netlink = Netlink::open_in(&self.netns).expect("a socket");
            netlink.find_link(name).await.expect("an answer")
        })
    }

    /// Where the container believes an address to be.
    pub fn neighbour(&self, address: IpAddr) -> Option<MacAddress> {
        let known = block_on(async {
            let netlink = Netlink::open_in(&self.netns).expect("a socket");
            netlink.neighbours().await.expect("the neighbours")
        });
        known.into_iter().find(|neighbour| neighbour.address == address)?.mac
    }

    pub fn state(&self) -> Vec<String> {
        block_on(async { state(&Netlink::open_in(&self.netns).expect("a socket")).await })
    }

    /// Sends a greeting to a TCP and a UDP socket of `server` at `address` (or of the host, for none), waits for them to
    /// arrive, and returns the address that they came from there.
    pub fn talks_to(&self, server: Option<&Self>, address: IpAddr) -> IpAddr {
        let in_server = |work: &(dyn Fn() -> (TcpListener, UdpSocket) + Sync)| match server {
            Some(server) => server.netns.run(work).expect("a thread"),
            None => work(),
        };
        let at = SocketAddr::new(address, 0);
        let (listener, datagrams) = in_server(&|| {
            let listener = TcpListener::bind(at).expect("a listener");
            (listener, UdpSocket::bind(at).expect("a socket"))
        });
        let to = listener.local_addr().expect("its address");
        let client = self.netns.run(|| TcpStream::connect_timeout(&to, PACKET_LIMIT)).expect("a thread");
        let mut client = client.expect("a connection");
        client.write_all(b"hello").expect("a write");
        let (mut served, from) = listener.accept().expect("the connection");
        served.set_read_timeout(Some(PACKET_LIMIT)).expect("a limit");
        let mut greeting = [0; 5];
        std::io::Read::read_exact(&mut served, &mut greeting).expect("the greeting");
        assert_eq!(&greeting, b"hello");

        let to = datagrams.local_addr().expect("its address");
        let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
        let sender = self.netns.run(|| UdpSocket::bind((any, 0))).expect("a thread").expect("a socket");
        datagrams.set_read_timeout(Some(PACKET_LIMIT)).expect("a limit");
        sender.send_to(b"hello", to).expect("a datagram");
        let (length, sender) = datagrams.recv_from(&mut greeting).expect("the datagram");
        assert_eq!((length, sender.ip()), (5, from.ip()));
        from.ip().to_canonical()
    }

    /// The first datagram that arrives here, when `from` sends one, `meanwhile` happens, and it sends another.
    pub fn first_heard(&self, from: &Self, at: IpAddr, meanwhile: impl FnOnce()) -> String {
        let receiver = self.netns.run(|| UdpSocket::bind((at, 0)).expect("a socket"));
        let receiver = receiver.expect("a thread");
        receiver.set_read_timeout(Some(PACKET_LIMIT)).expect("a limit");
        let to: SocketAddr = receiver.local_addr().expect("its address");
        let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let sender = from.netns.run(|| UdpSocket::bind((any, 0)).expect("a socket")).expect("a thread");
        sender.send_to(b"before", to).expect("a datagram");
        meanwhile();
        sender.send_to(b"after", to).expect("a datagram");
        let mut text = [0; 8];
        let length = receiver.recv(&mut text).expect("a datagram");
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    /// Tells a neighbour where this container is: its question would be dropped like its packets, which then wait for the
    /// answer instead of being lost.
    pub fn is_known_to(&self, neighbour: &Self, addresses: &[IpAddr]) {
        let mac = self.link("eth0").and_then(|link| link.mac).expect("its hardware address");
        block_on(async {
            let netlink = Netlink::open_in(&neighbour.netns).expect("a socket");
            let link = netlink.link("eth0").await.expect("the link");
            for address in addresses {
                netlink.replace_neighbour(link.index, *address, mac).await.expect("an entry");
            }
        });
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        netns::remove(self.netns.path()).expect("its name is removed");
        // The folder goes with the last container.
        let _ = std::fs::remove_dir("/run/netns");
    }
}

/// One call of an executable.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub verb: &'a str,
    pub config: &'a Value,
    pub container_id: &'a str,
    pub netns: &'a str,
    pub ifname: &'a str,
    pub args: &'a str,
    /// Looked at before the folder of the executables.
    pub path: &'a str,
}

impl<'a> Call<'a> {
    pub fn new(verb: &'a str, config: &'a Value, container: &'a Container) -> Self {
        Self {
            verb,
            config,
            container_id: &container.id,
            netns: container.path(),
            ifname: "eth0",
            args: "",
            path: "",
        }
    }

    /// The answer of the executable: its document (null for none), or its error document.
    pub fn run(&self, plugin: &str) -> Result<Value, Value> {
        let output = self.output(plugin);
        let text = String::from_utf8(output.stdout).expect("text");
        let document = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
        };
        if output.status.success() { Ok(document) } else { Err(document) }
    }

    fn output(&self, plugin: &str) -> Output {
        self.start(plugin).wait_with_output().expect("it ends")
    }

    /// The executable, which has its configuration.
    pub fn start(&self, plugin: &str) -> Child {
        let mut child = Command::new(bin_dir().join(plugin))
            .env("CNI_COMMAND", self.verb)
            .env("CNI_CONTAINERID", self.container_id)
            .env("CNI_NETNS", self.netns)
            .env("CNI_IFNAME", self.ifname)
            .env("CNI_ARGS", self.args)
            .env("CNI_PATH", format!("{}:{}", self.path, bin_dir().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the executable starts");
        let mut stdin = child.stdin.take().expect("its standard input");
        stdin.write_all(self.config.to_string().as_bytes()).expect("it reads");
        drop(stdin);
        child
    }
}

/// The executable that all plugins are.
pub const EXECUTABLE: &str = env!("CARGO_BIN_EXE_cni-plugins");

/// Where the plugins are installed: in a folder of the private host, which ends with that.
pub fn bin_dir() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        harness::private_host::require();
        let folder = Path::new("/run/private-host/cni");
        std::fs::create_dir(folder).expect("a folder");
        for name in cni_plugins::programs::names() {
            symlink(EXECUTABLE, folder.join(name)).expect("a link");
        }
        folder.to_owned()
    });
    &FOLDER
}

/// The processes of plugins that run now, `dhcp daemon` too.
pub fn plugins() -> Vec<PathBuf> {
    let processes = std::fs::read_dir("/proc").expect("processes").flatten().map(|entry| entry.path());
    let is_plugin = |process: &PathBuf| {
        std::fs::read_link(process.join("exe")).is_ok_and(|executable| executable == Path::new(EXECUTABLE))
    };
    processes.filter(is_plugin).collect()
}

/// What plugins do in the background has ended, and what a killed one left running.
pub fn wait_for_plugins() {
    harness::wait::until("the end of plugins", BACKGROUND_LIMIT, || match plugins().len() {
        0 => Ok(()),
        count => Err(format!("{count} processes")),
    });
}

pub fn block_on<R>(work: impl Future<Output = R>) -> R {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(work)
}

/// The host's links, addresses and routes.
pub fn host_state() -> Vec<String> {
    block_on(async { state(&Netlink::open().expect("a socket")).await })
}

pub fn host_links() -> Vec<Link> {
    block_on(async { Netlink::open().expect("a socket").links().await.expect("the links") })
}

/// Those of a link of the host that the kernel still looks for duplicates of, and does not use until then.
pub fn tentative_addresses(link: &str) -> Vec<IpNetwork> {
    block_on(async {
        let host = Netlink::open().expect("a socket");
        let index = host.link(link).await.expect("the link").index;
        let all = host.addresses(Some(index)).await.expect("the addresses");
        all.iter().filter(|address| address.is_tentative()).map(|address| address.network).collect()
    })
}

/// Link-local and multicast, which the kernel adds in its own time.
fn is_automatic(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_multicast())
}

/// Numbers that the kernel hands out (indexes) are replaced by names.
async fn state(netlink: &Netlink) -> Vec<String> {
    let links = netlink.links().await.expect("the links");
    let name = |index: u32| {
        links.iter().find(|link| link.index == index).map_or_else(|| "?".to_owned(), |link| link.name.clone())
    };
    let mut addresses = netlink.addresses(None).await.expect("the addresses");
    let mut routes = netlink.routes().await.expect("the routes");
    addresses.retain(|address| !is_automatic(address.network.ip()));
    routes.retain(|route| !is_automatic(route.destination.ip()));
    let mut lines: Vec<String> = links
        .iter()
        .map(|link| format!("link {} up {} mtu {} {:?}", link.name, link.up, link.mtu, link.alias))
        .collect();
    lines.extend(addresses.iter().map(|a| format!("address {} on {}", a.network, name(a.link))));
    lines.extend(routes.iter().map(|r| {
        format!(
            "route {} via {:?} on {} table {}",
            r.destination,
            r.gateway,
            name(r.link.unwrap_or(0)),
            r.table
        )
    }));
    lines.sort();
    lines
}

/// What the tool `nft` shows of the host's rules.
pub fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().expect("nft starts");
    assert!(output.status.success(), "nft {arguments:?}");
    String::from_utf8(output.stdout).expect("text")
}
