//! The messages between the runtime and a sandbox's shim, and how they are framed.
//!
//! A frame is a big-endian `u32` length and that many bytes of JSON, at most [`MAX_FRAME_BYTES`]; descriptors travel as SCM_RIGHTS with the
//! frame's first byte. The first frame in each direction is [`Hello`]; a shim and a runtime with different [`VERSION`]s do not talk. New fields get
//! serde defaults and new requests are answered by old shims with an error, so the version changes only when old meanings do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

mod frame;

pub use frame::{FrameError, MAX_FRAME_BYTES, encode, take_frame};

/// Version of the protocol.
pub const VERSION: u32 = 1;
/// Size of a pod's /dev/shm in bytes, as containerd has it.
pub const SHM_BYTES: u64 = 64 * 1024 * 1024;
/// The descriptor under which libcontainer finds a pid namespace that the pod's containers share.
pub const PID_NAMESPACE_FD: i32 = 100;
/// First argument of a shim's command line, by which a runtime finds shims without any file.
pub const PROGRAM: &str = "orlop-shim";

/// Exit code of a container whose process could not be started, as containerd.
pub const START_ERROR_CODE: i32 = 128;
/// How the message of such a container begins, as containerd.
pub const START_FAILED: &str = "failed to create shim task: OCI runtime create failed";

/// The time in nanoseconds since 1970, as messages and records have it.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The first frame of both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// The sandbox that the shim keeps, or that the runtime looks for.
    pub sandbox: String,
    /// The sender's pid.
    pub pid: i32,
}

/// What a shim is started with: the file that its command line names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShimConfig {
    /// The sandbox's id.
    pub sandbox: String,
    /// Where to listen.
    pub socket: PathBuf,
    /// Where to say what goes wrong.
    pub log: PathBuf,
    /// An empty directory: in the mount namespace of each start, libcontainer's files are arranged in it.
    pub oci_root: PathBuf,
    /// Where compiled seccomp filters are kept for all sandboxes; `None`: nowhere.
    #[serde(default)]
    pub seccomp_filters: Option<PathBuf>,
    /// Where control groups are mounted.
    pub cgroup_root: PathBuf,
    /// The shim's own group.
    #[serde(default)]
    pub shim_cgroup: Option<String>,
    /// Where to bind a network namespace of the pod's own; `None`: the node's.
    pub netns: Option<PathBuf>,
    /// The pod has an ipc namespace of its own.
    pub ipc: bool,
    /// The containers share a pid namespace of the pod.
    pub pid: bool,
    /// Host name in an uts namespace of the pod's own; `None`: the node's.
    pub hostname: Option<String>,
    /// Kernel parameters, `net.ipv4.ip_forward` to `1`.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Where the pod's /dev/shm is mounted; `None`: the node's is used.
    pub shm: Option<PathBuf>,
}

/// A request and the number that its answer will carry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the caller.
    pub id: u64,
    /// What to do.
    pub request: Request,
}

/// What a runtime asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// The containers that the shim keeps.
    List,
    /// Create and start a container.
    Start(Box<StartContainer>),
    /// Send a signal to a container's first process, or to all.
    Signal {
        /// Which.
        container: String,
        /// Number.
        signal: i32,
        /// Everybody in its control group.
        all: bool,
    },
    /// Kill what is left of a container, remove its control groups and forget it.
    Delete {
        /// Which; it need not be known any more.
        container: String,
        /// Its control group.
        cgroup: String,
    },
    /// Run a process in a container. Without a terminal, the descriptors of the wanted streams come with the frame, in order.
    Exec(Box<ExecProcess>),
    /// Send a signal to an exec'd process.
    SignalExec {
        /// Its id.
        exec: u64,
        /// Number.
        signal: i32,
    },
    /// Join the streams of a container. The descriptors of the wanted streams come with the frame, in order.
    Attach {
        /// Which.
        container: String,
        /// A descriptor to read the container's stdin from.
        stdin: bool,
        /// A descriptor to write the container's stdout to.
        stdout: bool,
        /// A descriptor to write the container's stderr to.
        stderr: bool,
    },
    /// Open the log anew at its path.
    ReopenLog {
        /// Which.
        container: String,
    },
    /// End: refused while containers run.
    Shutdown,
}

/// Everything about a new container that is not in its bundle's `config.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StartContainer {
    /// Id.
    pub container: String,
    /// Where the `config.json` of its OCI bundle is.
    pub bundle: PathBuf,
    /// What becomes its root.
    pub rootfs: RootFs,
    /// Mounts made for the container's eyes only before libcontainer binds them.
    pub staged: Vec<Staged>,
    /// Control group, absolute below the hierarchies' roots.
    pub cgroup: String,
    /// Limits of that group.
    pub limits: Limits,
    /// Devices that it may use; `None`: all.
    pub devices: Option<Vec<DeviceRule>>,
    /// oom_score_adj.
    pub oom_score_adj: Option<i32>,
    /// Working directory of its process; made in the container when it is missing, as runc does.
    pub cwd: PathBuf,
    /// Wants a terminal.
    pub tty: bool,
    /// Keep stdin open.
    pub stdin: bool,
    /// Close stdin when the first attachment with stdin ends.
    pub stdin_once: bool,
    /// Log file; `None`: output is read and thrown away.
    pub log: Option<PathBuf>,
    /// It has a pid namespace of its own, so that everybody in it ends with its first process.
    pub own_pid_namespace: bool,
    /// Where the record of start and exit is written.
    pub record: PathBuf,
}

/// A root file system as an overlay. Relative paths are below `directory`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RootFs {
    /// Working directory for the other paths.
    pub directory: PathBuf,
    /// Lower directories, the topmost first.
    pub lower: Vec<PathBuf>,
    /// Writable directory.
    pub upper: PathBuf,
    /// Work directory.
    pub work: PathBuf,
}

/// A tree of the host that is mounted at a path of the bundle, for the container's mount namespace only, and keeps its propagation both ways.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Staged {
    /// What.
    pub source: PathBuf,
    /// Directory or file that exists.
    pub target: PathBuf,
}

/// Limits in the units of the control group files. See `linux::cgroup::Limits`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields mirror linux::cgroup::Limits, which documents them")]
pub struct Limits {
    pub cpu_period: Option<u64>,
    pub cpu_quota: Option<i64>,
    pub cpu_shares: Option<u64>,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub memory: Option<i64>,
    pub memory_and_swap: Option<i64>,
    pub pids: Option<i64>,
    pub hugepages: Vec<(String, u64)>,
    pub unified: BTreeMap<String, String>,
}

/// Allows devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// `a`, `b` or `c`.
    pub kind: char,
    /// `None`: every.
    pub major: Option<u32>,
    /// `None`: every.
    pub minor: Option<u32>,
    /// Some of `r`, `w`, `m`.
    pub access: String,
}

/// A process to run in a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ExecProcess {
    /// Chosen by the caller, unique for the shim's life.
    pub exec: u64,
    /// In which.
    pub container: String,
    /// OCI `process` object.
    pub process: serde_json::Value,
    /// A descriptor for stdin comes with the frame.
    pub stdin: bool,
    /// A descriptor for stdout comes with the frame.
    pub stdout: bool,
    /// A descriptor for stderr comes with the frame.
    pub stderr: bool,
    /// Give it a terminal, whose master comes with the answer.
    pub tty: bool,
}

/// What a shim sends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromShim {
    /// The answer to a call.
    Answer {
        /// The call's number.
        id: u64,
        /// How it went.
        result: Result<Answer, Failure>,
    },
    /// Something happened. Every connection is told.
    Event(ShimEvent),
}

/// Answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// To [`Request::List`].
    Containers(Vec<ContainerReport>),
    /// To [`Request::Start`].
    Started {
        /// Pid in the shim's pid namespace.
        pid: i32,
        /// Nanoseconds since 1970.
        started_at: i64,
        /// Things that could not be done on this machine and do not matter enough to fail.
        warnings: Vec<String>,
    },
    /// To [`Request::Exec`]; with a terminal, its master comes with the frame.
    ExecStarted {
        /// Pid in the shim's pid namespace.
        pid: i32,
        /// A descriptor comes with the frame.
        terminal: bool,
    },
    /// To [`Request::Attach`]; of a container with a terminal, its master comes with the frame, for resizing.
    Attached {
        /// A descriptor comes with the frame.
        terminal: bool,
    },
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind, for decisions.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No such container or exec.
    NotFound,
    /// Not in a state that allows it.
    State,
    /// The process could not be set up or executed.
    Start,
    /// Anything else.
    Other,
}

/// Unasked messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShimEvent {
    /// A container runs; also sent to clients that did not ask for its start.
    Started {
        /// Which.
        container: String,
        /// Its record.
        record: Record,
    },
    /// A container ended, or its start failed (told to all but who asked for it); its log is written and its record durable.
    Exited {
        /// Which.
        container: String,
        /// How.
        exit: Exit,
    },
    /// An exec'd process ended.
    ExecExited {
        /// Its id.
        exec: u64,
        /// 128 + signal for a killed one.
        code: i32,
    },
    /// The kernel killed something in a container for memory.
    Oom {
        /// Which.
        container: String,
    },
}

/// A container as its shim knows it, also while it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerReport {
    /// Id.
    pub container: String,
    /// Its record.
    pub record: Record,
}

/// What the shim writes about a container, at its start and again at its exit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Pid in the shim's pid namespace; 0 while it starts, and for what never ran.
    pub pid: i32,
    /// Nanoseconds since 1970.
    pub started_at: i64,
    /// Once it ended.
    #[serde(default)]
    pub exit: Option<Exit>,
}

impl Record {
    /// Whether a shim still works on its start.
    pub fn is_starting(&self) -> bool {
        self.pid == 0 && self.exit.is_none()
    }
}

impl Answer {
    /// Descriptors that come with the frame.
    pub fn descriptors(&self) -> usize {
        match self {
            Answer::ExecStarted { terminal: true, .. } | Answer::Attached { terminal: true } => 1,
            _ => 0,
        }
    }
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 128 + signal for a killed one.
    pub code: i32,
    /// Nanoseconds since 1970.
    pub finished_at: i64,
    /// The kernel killed a process of it for memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// `StartError` for what could not be executed, `Unknown` by the runtime for what no shim saw.
    #[serde(default)]
    pub reason: String,
    /// More about the reason.
    #[serde(default)]
    pub message: String,
}

impl Exit {
    /// Of a container whose process could not be set up or executed.
    pub fn start_error(message: String, finished_at: i64) -> Exit {
        Exit { code: START_ERROR_CODE, finished_at, oom_killed: false, reason: "StartError".into(), message }
    }
}
