//! What a sweep takes and what it leaves, and what a start makes of a store that a power cut damaged.

use super::manifest::Part;
use super::*;

const NAME: &str = "docker.io/library/x:latest";

/// An image of one empty layer, committed under [`NAME`]; its diff id and the digest of its config.
fn put(store: &Store, layer: char) -> (String, String) {
    let diff_id = format!("sha256:{}", layer.to_string().repeat(64));
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let config = blobs::put(store.root(), config.to_string().as_bytes()).unwrap();
    let manifest = blobs::put(store.root(), format!("manifest {layer}").as_bytes()).unwrap();
    let directory = store.layers_dir().join(layers::name(&diff_id));
    std::fs::create_dir(&directory).unwrap();
    let meta = serde_json::json!({ "diff_id": diff_id, "bytes": 0, "inodes": 0 });
    std::fs::write(directory.with_extension("json"), meta.to_string()).unwrap();
    let content = Content {
        target: Part { digest: manifest.clone(), size: 1 },
        documents: vec![manifest],
        config: Part { digest: config.clone(), size: 1 },
        layers: vec![Part { digest: diff_id.clone(), size: 1 }],
        diff_ids: vec![diff_id.clone()],
        user: String::new(),
    };
    store.commit(&[Name::parse(NAME).unwrap()], &content).unwrap();
    (diff_id, config)
}

#[test]
fn what_somebody_holds_outlives_its_name() {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(root.path()).unwrap());
    let (old, config) = put(&store, 'a');
    let container = store.unpacked(NAME).unwrap();
    // The tag moves to another image.
    let (new, _) = put(&store, 'b');
    store.sweep().unwrap();
    assert!(layers::exists(root.path(), &old) && layers::exists(root.path(), &new));
    assert!(!blobs::exists(root.path(), &config), "only the layers are held");
    // As a restart holds them: by the names of their directories.
    let adopted = store.hold(container.layers.clone());
    drop(container);
    store.sweep().unwrap();
    assert!(layers::exists(root.path(), &old));
    drop(adopted);
    store.sweep().unwrap();
    assert!(!layers::exists(root.path(), &old) && layers::exists(root.path(), &new));
    store.remove(NAME).unwrap();
    assert!(!layers::exists(root.path(), &new) && store.list().is_empty());
    let left = std::fs::read_dir(store.layers_dir()).unwrap().count();
    assert_eq!(left, 0, "trees without a name are removed, too");
}

#[test]
fn what_a_power_cut_damaged_is_absent_and_can_be_pulled_again() {
    let root = tempfile::tempdir().unwrap();
    let open = || Arc::new(Store::open(root.path()).unwrap());
    let (_, config) = put(&open(), 'a');
    assert_eq!(open().list().len(), 1);
    std::fs::write(blobs::path(root.path(), &config), "").unwrap();
    assert!(open().list().is_empty());
    assert!(!blobs::exists(root.path(), &config), "a pull would take it as it is");
    let (layer, _) = put(&open(), 'b');
    std::fs::remove_dir(root.path().join("layers").join(layers::name(&layer))).unwrap();
    assert!(open().list().is_empty());
}
