//! Where the runtime keeps its things and how it reaches registries: the argument of [`crate::Runtime::open`].
//!
//! Input: values that the caller has validated as strings; output: paths that every other module derives its own from.
//! Refuses: relative paths and a state directory whose socket paths would not fit into a `sockaddr_un`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;

/// Longest path of a unix socket, without the closing zero byte (`unix(7)`).
const SOCKET_PATH_BYTES: usize = 107;
/// Length of a sandbox or container id in hexadecimal digits.
pub(crate) const ID_DIGITS: usize = 64;

/// Whether a name that was found on the node can be an id of ours.
pub(crate) fn is_id(name: &str) -> bool {
    name.len() == ID_DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Everything that the runtime needs to know about its machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// Durable state: blobs, layers, images, sandboxes, containers, the layer of mount points. Default `/var/lib/orlop/runtime`.
    pub root: PathBuf,
    /// Volatile state: shim sockets, network namespaces, compiled seccomp filters. Default `/run/orlop`.
    pub state: PathBuf,
    /// The shim's executable; it is copied into one sealed memory file from which all shims are executed.
    pub shim: PathBuf,
    /// CNI configurations; the first in lexical order is used. Default `/etc/cni/net.d`.
    pub cni_conf_dir: PathBuf,
    /// Where CNI executables are looked for, in order. Default `/opt/cni/bin`.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Where the CNI result cache lives. Default `/var/lib/cni`.
    pub cni_cache_dir: PathBuf,
    /// Root of the control groups. Default `/sys/fs/cgroup`.
    pub cgroup_root: PathBuf,
    /// Control group that shims join, relative to the root; `None` leaves them in the caller's.
    pub shim_cgroup: Option<String>,
    /// How registries are reached.
    pub registries: Registries,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            root: "/var/lib/orlop/runtime".into(),
            state: "/run/orlop".into(),
            shim: "/usr/local/bin/orlop-shim".into(),
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into()],
            cni_cache_dir: "/var/lib/cni".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            shim_cgroup: None,
            registries: Registries::default(),
        }
    }
}

/// Mirrors, certificates and limits for pulls.
#[derive(Clone, Debug)]
pub struct Registries {
    /// Per registry host (`docker.io`, `127.0.0.1:5000`); hosts without an entry are reached by https.
    pub hosts: Vec<RegistryHost>,
    /// PEM files with further certificate authorities, trusted for every registry.
    pub ca_files: Vec<PathBuf>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest silence while reading.
    pub read_timeout: Duration,
}

impl Default for Registries {
    fn default() -> Self {
        Registries {
            hosts: Vec::new(),
            ca_files: Vec::new(),
            connect_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(60),
        }
    }
}

/// What to do for one registry name.
#[derive(Clone, Debug)]
pub struct RegistryHost {
    /// The name as it appears in image references.
    pub name: String,
    /// Tried in order before the registry itself.
    pub mirrors: Vec<Endpoint>,
    /// The registry's own endpoint when it is not `https://<name>`.
    pub endpoint: Option<Endpoint>,
    /// Credentials used when the caller of a pull brings none.
    pub auth: Option<crate::image::AuthConfig>,
}

/// One server that speaks the distribution protocol.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `host` or `host:port`.
    pub host: String,
    /// Plain http instead of https; for registries on the loopback.
    pub plain_http: bool,
}

impl Config {
    /// Checks what can be checked without touching the machine.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the key, the value and what was expected.
    pub fn validate(&self) -> Result<(), Error> {
        let keys: [(&'static str, &Path); 6] = [
            ("root", &self.root),
            ("state", &self.state),
            ("shim", &self.shim),
            ("cni_conf_dir", &self.cni_conf_dir),
            ("cni_cache_dir", &self.cni_cache_dir),
            ("cgroup_root", &self.cgroup_root),
        ];
        for (key, value) in keys {
            if !value.is_absolute() {
                return Err(Error::InvalidArgument {
                    field: key.into(),
                    reason: format!("\"{}\" is not an absolute path", value.display()),
                });
            }
        }
        let longest = self.shim_dir().as_os_str().len() + 1 + ID_DIGITS + ".sock".len();
        if longest > SOCKET_PATH_BYTES {
            return Err(Error::InvalidArgument {
                field: "state".into(),
                reason: format!(
                    "\"{}\" is too long: socket paths below it would need {longest} bytes and may have \
                     {SOCKET_PATH_BYTES}",
                    self.state.display()
                ),
            });
        }
        Ok(())
    }

    pub(crate) fn shim_dir(&self) -> PathBuf {
        self.state.join("shim")
    }

    pub(crate) fn shim_socket(&self, sandbox: &str) -> PathBuf {
        self.shim_dir().join(format!("{sandbox}.sock"))
    }

    /// What a shim is started with; worth nothing without it.
    pub(crate) fn shim_config(&self, sandbox: &str) -> PathBuf {
        self.shim_dir().join(format!("{sandbox}.json"))
    }

    pub(crate) fn netns_dir(&self) -> PathBuf {
        self.state.join("netns")
    }

    /// Where a sandbox's network namespace is bound.
    pub fn netns_path(&self, sandbox: &str) -> PathBuf {
        self.netns_dir().join(sandbox)
    }

    pub(crate) fn shm_path(&self, sandbox: &str) -> PathBuf {
        self.state.join("shm").join(sandbox)
    }

    /// Empty for everybody else: where start workers arrange libcontainer's files, out of everybody's sight.
    pub(crate) fn oci_dir(&self) -> PathBuf {
        self.state.join("oci")
    }

    /// Compiled seccomp filters, by the shims for each other.
    pub(crate) fn seccomp_dir(&self) -> PathBuf {
        self.state.join("seccomp")
    }

    pub(crate) fn sandbox_dir(&self, sandbox: &str) -> PathBuf {
        self.root.join("sandboxes").join(sandbox)
    }

    /// The layer below all others: the places that every container has something mounted on, so that making them costs nobody's writable layer.
    pub(crate) fn mount_points_dir(&self) -> PathBuf {
        self.root.join("mountpoints")
    }

    pub(crate) fn container_dir(&self, container: &str) -> PathBuf {
        self.root.join("containers").join(container)
    }
}
