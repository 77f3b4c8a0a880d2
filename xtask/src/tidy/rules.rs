//! The rules themselves, as pure functions: a name or a file's text in, violations out.

use std::path::Path;

#[cfg(test)]
mod tests;

/// Which of our crates may depend on which (I1). A crate that is not listed may depend on none of ours.
const ALLOWED: &[(&str, &[&str])] = &[
    ("agent", &["dataplane", "linux", "runtime"]),
    ("cni-plugins", &["cni", "linux"]),
    ("dataplane", &["dataplane-abi", "linux"]),
    ("e2e", &["harness"]),
    ("harness", &["linux"]),
    ("runtime", &["cni", "linux", "shim-protocol"]),
    ("server", &["apiserver", "controllers"]),
    ("shim", &["linux", "shim-protocol"]),
    ("xtask", &["linux"]),
];

/// Modules that decide and do nothing else (I4): those of these names, and those whose `//!` says [`PURE_WORD`].
const PURE_FILES: &[&str] = &["filter.rs", "model.rs", "plan.rs", "ranking.rs", "select.rs"];
const PURE_WORD: &str = "Pure";
/// What a pure module may not mention. Addresses of `std::net` are values; its sockets are not.
const IMPURE: &[&str] = &[
    "std::fs",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "std::process",
    "tokio::",
    "SystemTime::now",
    "Instant::now",
    "Timestamp::now",
    "async fn",
];

/// Where the lint against unsafe code may be lifted; the workspace denies it everywhere.
const UNSAFE_FOLDERS: &[&str] =
    &["ebpf/dataplane", "ebpf/dataplane-abi", "ebpf/dataplane-programs", "runtime/linux", "runtime/shim"];

const FORBIDDEN_NAMES: &[&str] = &["common", "core", "utils", "util", "misc", "helpers"];

/// One direct dependency of `package`. `members` are the names of the workspace's crates.
pub fn dependency(members: &[&str], package: &str, dependency: &str, development: bool) -> Option<String> {
    if dependency == "libcontainer" && package != "shim" {
        return Some(format!("{package} depends on libcontainer: only shim may (I3)"));
    }
    if !members.contains(&dependency) || (development && dependency == "harness") {
        return None;
    }
    let allowed = ALLOWED.iter().find(|(name, _)| *name == package).map_or(&[][..], |(_, allowed)| *allowed);
    (!allowed.contains(&dependency))
        .then(|| format!("{package} depends on {dependency}: not an allowed direction (I1)"))
}

/// Two TLS providers in one lock file make rustls panic when it chooses, so only ring may be resolved.
pub fn tls_providers<'a>(mut resolved: impl Iterator<Item = &'a str>) -> Option<String> {
    resolved
        .find(|id| id.contains("aws-lc-rs") || id.contains("openssl-sys"))
        .map(|id| format!("{id} is a second TLS provider: use ring"))
}

/// One source file, `path` relative to the checkout.
pub fn file(path: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let shown = path.display();
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let is_test = stem == "tests" || path.components().any(|part| part.as_os_str() == "tests");
    if name == "mod.rs" {
        found.push(format!("{shown}: name it after its module, next to the folder, instead of mod.rs"));
    }
    if FORBIDDEN_NAMES.contains(&stem) {
        found.push(format!("{shown}: {stem:?} says nothing about what is inside"));
    }
    if !is_test && !text.starts_with("//!") && !text.starts_with("#!") {
        found.push(format!(
            "{shown}: does not open with //! (what it owns, inputs, outputs, what it refuses)"
        ));
    }
    if lifts_unsafe(text) && !UNSAFE_FOLDERS.iter().any(|folder| path.starts_with(folder)) {
        found.push(format!("{shown}: lifts the lint unsafe_code: only {} may", UNSAFE_FOLDERS.join(", ")));
    }
    if PURE_FILES.contains(&name) || says_pure(text) {
        let mentions = IMPURE.iter().filter(|word| text.contains(**word));
        found.extend(mentions.map(|word| format!("{shown}: a pure module mentions {word} (I4)")));
    }
    found
}

fn says_pure(text: &str) -> bool {
    let header = text.lines().take_while(|line| line.starts_with("//!"));
    header.flat_map(|line| line.split(|sign: char| !sign.is_alphanumeric())).any(|word| word == PURE_WORD)
}

/// Whether an attribute of the file names the lint.
fn lifts_unsafe(text: &str) -> bool {
    let is_attribute = |line: &&str| line.starts_with("#[") || line.starts_with("#![");
    text.lines().map(str::trim).filter(is_attribute).any(|line| line.contains("unsafe_code"))
}
