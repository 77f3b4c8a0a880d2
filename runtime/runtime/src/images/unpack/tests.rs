//! Layers that try to get out, and what becomes of ordinary ones. Needs no privilege beyond writing files (entries are owned by the caller).

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Layer {
        Layer(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, kind: EntryType, name: &str, content: &[u8], link: Option<&str>) -> Layer {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o4755 });
        header.set_uid(u64::from(rustix::process::getuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getgid().as_raw()));
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        if kind.is_gnu_sparse() {
            header.as_gnu_mut().unwrap().realsize = *b"00000000000\0";
        }
        let raw = header.as_mut_bytes();
        raw[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(link) = link {
            raw[157..157 + link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Layer {
        self.add(EntryType::Regular, name, content, None)
    }

    fn unpack(self) -> (tempfile::TempDir, io::Result<Unpacked>) {
        let directory = tempfile::tempdir().unwrap();
        let bytes = self.0.into_inner().unwrap();
        let result = unpack(bytes.as_slice(), directory.path());
        (directory, result)
    }
}

#[test]
fn ordinary_entries() {
    let (directory, result) = Layer::new()
        .file("bin/tool", b"12345")
        .add(EntryType::Link, "bin/same", b"", Some("bin/tool"))
        .add(EntryType::Symlink, "sbin", b"", Some("bin"))
        .file("sbin/other", b"1")
        .unpack();
    assert_eq!(result.unwrap().bytes, 6);
    let tool = std::fs::metadata(directory.path().join("bin/tool")).unwrap();
    assert_eq!((tool.permissions().mode() & 0o7777, tool.mtime(), tool.nlink()), (0o4755, 1_000_000_000, 2));
    assert_eq!(std::fs::read(directory.path().join("bin/other")).unwrap(), b"1");
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let (directory, result) = Layer::new()
        .file("a/b", b"1")
        .file("a", b"2")
        .file("c", b"3")
        .add(EntryType::Directory, "c", b"", None)
        .unpack();
    result.unwrap();
    assert_eq!(std::fs::read(directory.path().join("a")).unwrap(), b"2");
    assert!(directory.path().join("c").is_dir());
}

#[test]
fn nothing_leads_out() {
    let outside = tempfile::tempdir().unwrap();
    let link = outside.path().to_str().unwrap();
    let (directory, result) =
        Layer::new().add(EntryType::Symlink, "out", b"", Some(link)).file("out/file", b"x").unpack();
    // The link is resolved inside the layer, where its target is made.
    result.unwrap_err();
    assert!(std::fs::read_dir(outside.path()).unwrap().next().is_none());
    drop(directory);
    for name in ["../x", "a/../../x"] {
        let (_directory, result) = Layer::new().file(name, b"x").unpack();
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidData, "{name}");
    }
    let (_directory, result) = Layer::new().add(EntryType::Link, "shadow", b"", Some("/etc/passwd")).unpack();
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn absolute_names_are_inside() {
    let (directory, result) = Layer::new().file("/etc/motd", b"x").unpack();
    result.unwrap();
    assert!(directory.path().join("etc/motd").exists());
}

/// One attribute in pax form, of this many bytes.
fn attribute(bytes: usize) -> Vec<u8> {
    let start = format!("{bytes} comment=");
    let mut text = start.clone().into_bytes();
    text.resize(bytes - 1, b'x');
    text.push(b'\n');
    text
}

#[test]
fn headers_are_read_only_as_far_as_headers_are_long() {
    const LONG: usize = 2 << 20;
    let accepted = Layer::new()
        .file("big", &vec![1; 3 << 20])
        .add(EntryType::XHeader, "pax", &attribute(200_000), None)
        .file("a", b"1")
        .add(EntryType::XGlobalHeader, "global", &attribute(200_000), None)
        .file("b", b"2");
    let (directory, result) = accepted.unpack();
    result.unwrap();
    assert!(["big", "a", "b"].iter().all(|name| directory.path().join(name).exists()));
    for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink] {
        // What was read of a file's content is no credit for what follows it.
        let layer = Layer::new().file("big", &vec![1; 3 << 20]).add(kind, "long", &attribute(LONG), None);
        let (_directory, result) = layer.file("a", b"1").unpack();
        let error = result.unwrap_err();
        assert!(error.to_string().contains("header of more than"), "{kind:?}: {error}");
    }
    let sparse = Layer::new().add(EntryType::XHeader, "pax", &attribute(100), None).add(
        EntryType::GNUSparse,
        "s",
        b"",
        None,
    );
    assert!(sparse.unpack().1.unwrap_err().to_string().contains("sparse file with pax attributes"));
}

#[test]
fn a_cut_stream_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = Layer::new().file("a", &[7; 4000]).0.into_inner().unwrap();
    assert!(unpack(&bytes[..2000], directory.path()).is_err());
}
