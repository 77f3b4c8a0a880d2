//! `cargo xtask images`: the test images, as OCI archives in `target/images`.
//!
//! Built from this repository's own programs and Debian's busybox; nothing is pulled. The same input gives the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{process, setup};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

struct Recipe {
    name: &'static str,
    reference: &'static str,
    /// Extra executables: path in the image, path on this machine.
    programs: Vec<(&'static str, PathBuf)>,
    entrypoint: Option<&'static str>,
    command: &'static [&'static str],
}

/// Where the archives are put.
pub fn folder() -> PathBuf {
    process::target().join("images")
}

pub fn run() -> Result<PathBuf> {
    let echo = build_echo()?;
    let recipes = [
        Recipe {
            name: "busybox",
            reference: "localhost/busybox:v1",
            programs: Vec::new(),
            entrypoint: None,
            command: &["/bin/sh"],
        },
        Recipe {
            name: "echo",
            reference: "localhost/echo:v1",
            programs: vec![("echo", echo)],
            entrypoint: Some("/echo"),
            command: &["serve"],
        },
    ];
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    for recipe in &recipes {
        let archive = archive(recipe)?;
        let path = folder.join(format!("{}.tar", recipe.name));
        if fs::read(&path).ok().as_ref() != Some(&archive) {
            fs::write(&path, &archive).with_context(|| format!("write {}", path.display()))?;
        }
        println!("images: {} ({} KiB)", recipe.reference, archive.len() / 1024);
    }
    Ok(folder)
}

/// Linked statically, since the image has no libraries.
fn build_echo() -> Result<PathBuf> {
    let mut build = process::cargo();
    build.args(["rustc", "--quiet", "--locked", "--release", "--package", "echo", "--bin", "echo"]);
    build.args(["--target-dir"]).arg(process::target().join("static"));
    build.args(["--", "-C", "target-feature=+crt-static"]);
    process::run_quietly("building the echo server", &mut build)?;
    Ok(process::target().join("static/release/echo"))
}

/// The bytes of an OCI archive with one layer.
fn archive(recipe: &Recipe) -> Result<Vec<u8>> {
    let layer = layer(recipe)?;
    let diff_id = digest(&layer);
    let compressed = gzip(&layer)?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Entrypoint": recipe.entrypoint.map(|program| vec![program]),
            "Cmd": recipe.command,
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "cargo xtask images"}],
    });
    let config = serde_json::to_vec(&config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &compressed)],
    });
    let manifest = serde_json::to_vec(&manifest)?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["platform"] = json!({"architecture": architecture(), "os": "linux"});
    entry["annotations"] = json!({
        "io.containerd.image.name": recipe.reference,
        "org.opencontainers.image.ref.name": recipe.reference,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    let mut tar = Tar::new();
    tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.file("index.json", 0o644, &serde_json::to_vec(&index)?)?;
    for blob in [&compressed, &config, &manifest] {
        tar.file(&format!("blobs/sha256/{}", hex(blob)), 0o644, blob)?;
    }
    tar.finish()
}

fn layer(recipe: &Recipe) -> Result<Vec<u8>> {
    let mut tar = Tar::new();
    for folder in ["bin", "etc", "root", "tmp", "usr", "usr/bin", "var", "proc", "sys", "dev"] {
        tar.folder(folder, if folder == "tmp" { 0o1777 } else { 0o755 })?;
    }
    tar.file("etc/passwd", 0o644, PASSWD.as_bytes())?;
    tar.file("etc/group", 0o644, GROUP.as_bytes())?;
    let busybox = setup::busybox()?;
    let bytes = fs::read(&busybox).with_context(|| format!("read {}", busybox.display()))?;
    tar.file("bin/busybox", 0o755, &bytes)?;
    for applet in applets(&busybox)? {
        tar.link(&format!("bin/{applet}"), "busybox")?;
    }
    for (name, path) in &recipe.programs {
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        tar.file(name, 0o755, &bytes)?;
    }
    tar.finish()
}

fn applets(busybox: &Path) -> Result<Vec<String>> {
    let list = process::probe(std::process::Command::new(busybox).arg("--list"))
        .context("`busybox --list` failed: run `cargo xtask setup`")?;
    let mut names: Vec<String> = list.lines().filter(|name| *name != "busybox").map(str::to_owned).collect();
    names.sort();
    ensure!(!names.is_empty(), "busybox has no applets");
    Ok(names)
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes)?;
    Ok(encoder.finish()?)
}

/// What OCI calls this machine's processor.
fn architecture() -> &'static str {
    let names = BTreeMap::from([("x86_64", "amd64"), ("aarch64", "arm64")]);
    names.get(std::env::consts::ARCH).copied().unwrap_or(std::env::consts::ARCH)
}

/// A tar stream whose bytes depend on nothing but its entries.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        Ok(self.0.append_data(&mut header, Path::new(path), std::io::empty())?)
    }

    fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let mut header = header(tar::EntryType::Regular, mode, bytes.len() as u64);
        Ok(self.0.append_data(&mut header, Path::new(path), bytes)?)
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        Ok(self.0.append_link(&mut header, Path::new(path), Path::new(target))?)
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}
