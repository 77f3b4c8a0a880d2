//! Indexes for several platforms, and documents that lie.

use super::*;

fn index(entries: &str) -> ImageIndex {
    let text = format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#);
    match parse_document("x", text.as_bytes()).unwrap() {
        Document::Index(index) => *index,
        Document::Manifest(_) => panic!("not an index"),
    }
}

fn entry(digit: char, platform: &str) -> String {
    let digest = digit.to_string().repeat(64);
    format!(
        r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{digest}","size":1{platform}}}"#
    )
}

#[test]
fn the_entry_for_this_machine_is_chosen() {
    let ours = Arch::default();
    let other = if ours == Arch::Amd64 { "arm64" } else { "amd64" };
    let platform = |arch: &str, os: &str| format!(r#","platform":{{"architecture":"{arch}","os":"{os}"}}"#);
    let entries = [
        entry('a', &platform("unknown", "unknown")),
        entry('b', &platform(other, "linux")),
        entry('c', &platform(&ours.to_string(), "windows")),
        entry('d', &platform(&ours.to_string(), "linux")),
    ];
    let chosen = choose(&index(&entries.join(","))).unwrap().digest().to_string();
    assert_eq!(chosen, format!("sha256:{}", "d".repeat(64)));
    assert!(choose(&index(&entries[..3].join(","))).is_none());
    assert!(choose(&index(&entry('e', ""))).is_some());
}

#[test]
fn documents_that_are_not_manifests() {
    for text in ["", "[]", "{}", r#"{"schemaVersion":1}"#, r#"{"schemaVersion":2,"manifests":7}"#] {
        assert!(matches!(parse_document("x", text.as_bytes()), Err(ImageError::Malformed { .. })), "{text}");
    }
}

#[test]
fn sizes_that_nobody_can_send_are_refused() {
    let digest = |digit: char| format!("sha256:{}", digit.to_string().repeat(64));
    let manifest = |config: u64, layers: [u64; 2]| {
        let layer = |size| serde_json::json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest('a'), "size": size });
        let text = serde_json::json!({
            "schemaVersion": 2,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest('c'), "size": config },
            "layers": layers.map(layer),
        });
        match parse_document("x", text.to_string().as_bytes()).unwrap() {
            Document::Manifest(manifest) => *manifest,
            Document::Index(_) => panic!("not a manifest"),
        }
    };
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [digest('a'), digest('b')] },
    });
    let made = |config_bytes, layers| {
        let target = Part { digest: digest('d'), size: 1 };
        content("x", target, Vec::new(), &manifest(config_bytes, layers), config.to_string().as_bytes())
    };
    assert_eq!(made(1, [2, 3]).unwrap().size(), 6);
    for (config_bytes, layers) in [(1, [u64::MAX, 2]), (1, [1 << 40, 2]), (u64::MAX, [1, 2])] {
        let error = made(config_bytes, layers).unwrap_err().to_string();
        assert!(error.contains("bytes are more than"), "{error}");
    }
}
