//! The tables of `tests/differential`: configurations and sequences of calls, as data.
//!
//! A step's `config` is merged into the case's (RFC 7386), so a step says only what it changes. CHECK and DEL are given the
//! result of their attachment's last ADD, as a runtime does; an ADD is given it when it is `chained`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

/// One row: what both implementations are asked, one after the other, each on a host of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    /// The executable of every step that names none.
    pub plugin: String,
    /// A kind of link, or `vlan_filtering` of bridges, that the kernel must know, else the case is skipped.
    #[serde(default)]
    pub needs: Option<String>,
    /// Commands on the host before the first step.
    #[serde(default)]
    pub prepare: Vec<Vec<String>>,
    /// Files that exist before the first step, by path.
    #[serde(default)]
    pub files: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    pub config: Value,
    pub steps: Vec<Step>,
    /// Lines that may differ, each with its reason.
    #[serde(default)]
    pub accepted: Vec<Accepted>,
}

/// A difference that is meant.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    /// Parts of the differing line, with ` … ` between them.
    pub line: String,
    /// The only step after which it may differ.
    #[serde(default)]
    pub step: Option<usize>,
    /// For the reader of the table.
    #[expect(dead_code, reason = "its place in the table must not be forgotten")]
    pub reason: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Step {
    Call(Box<Call>),
    Run(Run),
    End(End),
}

/// One call of a plugin.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    pub verb: String,
    /// Name of the container; its namespace exists before the first step.
    #[serde(default = "a")]
    pub container: String,
    #[serde(default = "eth0")]
    pub ifname: String,
    #[serde(default)]
    pub plugin: Option<String>,
    #[serde(default)]
    pub config: Option<Value>,
    #[serde(default)]
    pub args: String,
    /// Other variables; an empty value takes the variable away.
    #[serde(default)]
    pub env: std::collections::BTreeMap<String, String>,
    /// The result of the last ADD of this attachment goes in as `prevResult`.
    #[serde(default)]
    pub chained: bool,
    /// CHECK and DEL without `prevResult`.
    #[serde(default)]
    pub forgetful: bool,
    /// Standard input as it is, instead of a configuration.
    #[serde(default)]
    pub stdin: Option<String>,
    /// Our error code where the reference says 999, which it does for nearly everything. The specification has codes that tell
    /// the caller more.
    #[serde(default)]
    pub code: Option<u32>,
    #[serde(default)]
    pub differs: Option<Differs>,
}

/// One of the two succeeds and the other does not, which is meant; the states can then not be compared, so this is the last
/// step of its row.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differs {
    /// Parts of its answer, with ` … ` between them.
    pub reference: String,
    /// Parts of our answer.
    pub ours: String,
    /// For the reader of the table.
    #[expect(dead_code, reason = "its place in the table must not be forgotten")]
    pub reason: String,
}

/// A command between calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    pub run: Vec<String>,
    /// The container to run it in; without one the host.
    #[serde(default, rename = "in")]
    pub container: Option<String>,
}

/// A container whose namespace ends, with everything in it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    pub end: String,
}

impl Case {
    /// The containers that the steps name, in order of appearance.
    pub fn containers(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for step in &self.steps {
            let name = match step {
                Step::Call(call) => Some(call.container.as_str()),
                Step::Run(run) => run.container.as_deref(),
                Step::End(_) => None,
            };
            names.extend(name.filter(|name| !names.contains(name)));
        }
        names
    }
}

/// Reads the table `tests/differential/<name>.json`.
pub fn load<T: serde::de::DeserializeOwned>(name: &str) -> Vec<T> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential").join(name).with_extension("json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn a() -> String {
    "a".to_owned()
}

fn eth0() -> String {
    "eth0".to_owned()
}
