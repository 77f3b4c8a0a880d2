//! A runtime in a temporary directory with a busybox image, and helpers that wait for conditions with a deadline.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use runtime::{
    Config, ContainerConfig, ContainerId, ContainerState, ContainerStatus, Event, LinuxSandboxConfig,
    NamespaceMode, NamespaceOptions, Runtime, SandboxConfig, SandboxId,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Longest wait for anything that a test waits for.
pub const LIMIT: Duration = Duration::from_secs(30);
pub const IMAGE: &str = "localhost/busybox:test";

pub struct Host {
    pub directory: tempfile::TempDir,
    pub config: Config,
    group: String,
}

impl Host {
    /// Refuses to run where it could change the machine.
    pub fn new() -> Host {
        harness::private_host::require();
        linux::interface::loopback_up().expect("loopback");
        let directory = tempfile::Builder::new().prefix("ot").tempdir_in("/tmp").expect("a directory");
        let base = directory.path();
        let config = Config {
            root: base.join("r"),
            state: base.join("s"),
            shim: built("orlop-shim"),
            cni_conf_dir: base.join("net.d"),
            cni_bin_dirs: vec![base.join("plugins")],
            cni_cache_dir: base.join("cni"),
            ..Config::default()
        };
        std::fs::create_dir(base.join("net.d")).expect("a directory");
        // As on a node: the volatile state lies on a file system in memory, and nothing else of the runtime's.
        std::fs::create_dir(&config.state).expect("a directory");
        linux::mount::tmpfs(&config.state, "mode=0755").expect("a file system for the volatile state");
        let name = base.file_name().expect("a name").to_string_lossy().into_owned();
        Host { directory, config, group: format!("/orlop-{name}") }
    }

    pub async fn open(&self) -> Runtime {
        Runtime::open(self.config.clone()).await.expect("open the runtime")
    }

    pub async fn open_with_image(&self) -> Runtime {
        let runtime = self.open().await;
        let archive = self.directory.path().join("busybox.tar");
        std::fs::write(&archive, busybox_archive()).expect("write the archive");
        runtime.import_archive(&archive, Some(IMAGE)).await.expect("import busybox");
        runtime
    }

    /// A pod in the node's network, each container with a pid namespace of its own.
    pub fn pod(&self) -> SandboxConfig {
        SandboxConfig {
            name: "pod".into(),
            namespace: "default".into(),
            uid: "1-2-3".into(),
            log_directory: self.directory.path().join("logs").display().to_string(),
            linux: LinuxSandboxConfig {
                cgroup_parent: format!("{}/pod", self.group),
                namespaces: NamespaceOptions {
                    network: NamespaceMode::Node,
                    pid: NamespaceMode::Container,
                    ipc: NamespaceMode::Pod,
                },
                ..LinuxSandboxConfig::default()
            },
            ..SandboxConfig::default()
        }
    }

    /// A network of ours for pods: the bridge and host-local plugins.
    pub fn configure_network(&self) {
        let text = json!({
            "cniVersion": "1.0.0", "name": "pods",
            "plugins": [{
                "type": "bridge", "bridge": "cni0", "isGateway": true,
                "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.88.0.0/16" }]],
                    "dataDir": self.directory.path().join("ipam"), "routes": [{ "dst": "0.0.0.0/0" }] },
            }],
        });
        let file = self.config.cni_conf_dir.join("10-pods.conflist");
        std::fs::write(file, text.to_string()).expect("write the network configuration");
        let plugins = &self.config.cni_bin_dirs[0];
        std::fs::create_dir_all(plugins).expect("a directory");
        for plugin in ["bridge", "host-local"] {
            std::os::unix::fs::symlink(built("cni-plugins"), plugins.join(plugin)).expect("a link");
        }
    }

    /// A network whose only plugin is a shell script. Without any of its own it answers ADD with no address.
    pub fn configure_scripted_network(&mut self, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let programs = self.directory.path().join("plugins");
        std::fs::create_dir_all(&programs).expect("a directory");
        let plugin = programs.join("scripted");
        let text = format!(
            "#!/bin/sh\ncat > /dev/null\n{script}\n[ $CNI_COMMAND != ADD ] || echo '{{\"cniVersion\":\"1.0.0\"}}'\n"
        );
        std::fs::write(&plugin, text).expect("write the plugin");
        std::fs::set_permissions(&plugin, PermissionsExt::from_mode(0o755)).expect("make it executable");
        self.config.cni_bin_dirs = vec![programs];
        let list = json!({ "cniVersion": "1.0.0", "name": "scripted", "plugins": [{ "type": "scripted" }] });
        let file = self.config.cni_conf_dir.join("10-scripted.conflist");
        std::fs::write(file, list.to_string()).expect("write the network configuration");
    }

    pub fn read_log(&self, name: &str) -> Vec<(String, String)> {
        let path = self.directory.path().join("logs").join(name);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = |line: &str| {
            let mut fields = line.splitn(4, ' ').skip(1);
            let stream = fields.next().unwrap_or_default().to_owned();
            (stream, fields.nth(1).unwrap_or_default().to_owned())
        };
        text.lines().map(line).collect()
    }
}

impl Host {
    /// What is mounted for pods.
    pub fn mounts(&self) -> Vec<linux::mount::MountEntry> {
        let mut table = linux::mount::table().expect("the mount table");
        table.retain(|entry| {
            entry.mount_point.starts_with(self.directory.path()) && entry.mount_point != self.config.state
        });
        table
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let processes = linux::process::list_by_program(shim_protocol::PROGRAM).unwrap_or_default();
        for shim in processes {
            if let Ok(pidfd) = linux::process::pidfd(shim.pid) {
                let _ = linux::process::signal(std::os::fd::AsFd::as_fd(&pidfd), 9);
            }
        }
        if let Ok(layout) = linux::cgroup::Layout::detect(Path::new("/sys/fs/cgroup"))
            && let Ok(group) = layout.group(&self.group)
        {
            let _ = group.kill(LIMIT);
            let _ = group.remove();
        }
        // The bridge plugin keeps its bridge, and mount(8) its notes; both are the test's to remove.
        let _ = std::process::Command::new("ip")
            .args(["link", "delete", "cni0"])
            .stderr(std::process::Stdio::null())
            .status();
        let _ = std::fs::remove_dir_all("/run/mount");
        for point in self.mounts().iter().map(|entry| &entry.mount_point).chain([&self.config.state]) {
            let _ = linux::mount::detach(point);
        }
    }
}

/// A program of this workspace, beside the test's own directory.
pub fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let path = own.parent().and_then(Path::parent).expect("target directory").join(name);
    assert!(path.exists(), "{} is not built: cargo build --workspace --bins", path.display());
    path
}

pub fn container(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        name: name.into(),
        image: IMAGE.into(),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        log_path: format!("{name}.log"),
        ..ContainerConfig::default()
    }
}

pub async fn start(runtime: &Runtime, sandbox: &SandboxId, config: ContainerConfig) -> ContainerId {
    let id = runtime.create_container(sandbox, config).await.expect("create the container");
    runtime
        .start_container(&id)
        .await
        .unwrap_or_else(|error| panic!("start the container: {}", chain(&error)));
    id
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(next) = source {
        text.push_str(&format!(": {next}"));
        source = next.source();
    }
    text
}

/// Waits until a container exited.
pub async fn exited(runtime: &Runtime, id: &ContainerId) -> ContainerStatus {
    let mut events = runtime.events();
    let wait = async {
        loop {
            let status = runtime.container_status(id).expect("the container");
            if status.state == ContainerState::Exited {
                return status;
            }
            let _: Option<Event> = events.recv().await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the container exits in time")
}

/// Waits until a condition holds that nothing announces.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn digest(bytes: &[u8]) -> String {
    let text: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    text
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    archive.append_data(&mut header, path, bytes).expect("append");
}

fn link(archive: &mut tar::Builder<Vec<u8>>, path: &str, target: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    archive.append_link(&mut header, path, target).expect("append");
}

/// A program that does one system call without arguments and exits with its error number: an ELF file with one segment.
pub fn program_calling(call: u16) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u16 = 64 + 56;
    let (machine, code) = if cfg!(target_arch = "aarch64") {
        // mov x8, call; svc 0; neg x0, x0; mov x8, exit; svc 0
        let words = [0xd280_0008 | u32::from(call) << 5, 0xd400_0001, 0xcb00_03e0, 0xd280_0ba8, 0xd400_0001];
        (183_u16, words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect::<Vec<u8>>())
    } else {
        // mov eax, call; syscall; mov edi, eax; neg edi; mov eax, exit; syscall
        let [low, high] = call.to_le_bytes();
        let code = [0xb8, low, high, 0, 0, 0x0f, 0x05, 0x89, 0xc7, 0xf7, 0xdf, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
        (62, code.to_vec())
    };
    let size = u64::from(HEADERS) + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // e_type to e_shstrndx: an executable, its entry behind the headers, one program header, no sections.
    for half in [2, machine, 1, 0] {
        file.extend(half.to_le_bytes());
    }
    for long in [BASE + u64::from(HEADERS), 64, 0] {
        file.extend(long.to_le_bytes());
    }
    for half in [0, 0, 64, 56, 1, 64, 0, 0] {
        file.extend(u16::to_le_bytes(half));
    }
    // PT_LOAD, readable and executable, the whole file.
    file.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    for long in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(long.to_le_bytes());
    }
    [file, code].concat()
}

/// Two layers: busybox, and a file that hides another.
pub fn layers() -> Vec<Vec<u8>> {
    let mut base = tar::Builder::new(Vec::new());
    append(&mut base, "bin/busybox", &std::fs::read("/bin/busybox").expect("busybox-static"), 0o755);
    for tool in [
        "sh", "cat", "echo", "sleep", "id", "ls", "hostname", "stat", "kill", "ps", "env", "mkdir", "mount",
        "stty", "dd", "wc", "grep", "head", "true", "false", "tr", "seq", "touch", "unshare", "ip", "nc",
        "yes", "pwd", "rm", "mknod",
    ] {
        link(&mut base, &format!("bin/{tool}"), "busybox");
    }
    append(&mut base, "etc/passwd", b"root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv:/bin/sh\n", 0o644);
    append(&mut base, "etc/group", b"root:x:0:\nweb:x:44:\nextra:x:55:web\n", 0o644);
    append(&mut base, "hidden", b"lower", 0o644);
    append(&mut base, "kept", b"lower", 0o644);
    let mut top = tar::Builder::new(Vec::new());
    append(&mut top, ".wh.hidden", b"", 0o644);
    append(&mut top, "kept", b"upper", 0o644);
    vec![base.into_inner().expect("tar"), top.into_inner().expect("tar")]
}

/// Blobs of an image by digest, and the digest of its manifest.
pub fn image_blobs(layers: &[Vec<u8>]) -> (BTreeMap<String, Vec<u8>>, String) {
    let mut blobs = BTreeMap::new();
    let mut put = |bytes: Vec<u8>| {
        let name = digest(&bytes);
        let size = bytes.len();
        blobs.insert(name.clone(), bytes);
        (format!("sha256:{name}"), size)
    };
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", digest(layer))).collect();
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": arch, "os": "linux",
        "config": { "Cmd": ["sh"], "Env": ["PATH=/bin", "FROM=image"], "StopSignal": "SIGUSR1" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let descriptor = |(digest, size): (String, usize), kind: &str| -> Value {
        json!({ "mediaType": kind, "digest": digest, "size": size })
    };
    let config = descriptor(put(config.to_string().into_bytes()), "application/vnd.oci.image.config.v1+json");
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| descriptor(put(layer.clone()), "application/vnd.oci.image.layer.v1.tar"))
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": layers,
    });
    let (manifest, _) = put(manifest.to_string().into_bytes());
    (blobs, manifest)
}

/// An OCI layout as a tar archive.
pub fn archive_of(blobs: &BTreeMap<String, Vec<u8>>, manifest: &str) -> Vec<u8> {
    let size = blobs[manifest.trim_start_matches("sha256:")].len();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": size,
        }],
    });
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644);
    append(&mut archive, "index.json", index.to_string().as_bytes(), 0o644);
    for (name, bytes) in blobs {
        append(&mut archive, &format!("blobs/sha256/{name}"), bytes, 0o644);
    }
    archive.into_inner().expect("tar")
}

pub fn busybox_archive() -> Vec<u8> {
    let (blobs, manifest) = image_blobs(&layers());
    archive_of(&blobs, &manifest)
}
