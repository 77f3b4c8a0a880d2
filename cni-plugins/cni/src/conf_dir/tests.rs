//! Loading folders of configurations.

use std::fs;

use super::load_conf_dir;

#[test]
fn files_are_loaded_by_name_and_broken_ones_are_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a file");
    write("20-b.conf", r#"{"name": "b", "type": "bridge"}"#);
    write("10-a.conflist", r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{"type": "bridge"}]}"#);
    write("15-broken.conflist", r#"{"name": "c", "plugins": [{}]}"#);
    write("30-none.conflist", r#"{"name": "d", "plugins": []}"#);
    write("notes.txt", "not a configuration");
    let loaded = load_conf_dir(dir.path()).expect("a folder that can be read");
    let names: Vec<_> = loaded.networks.iter().map(|network| network.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let broken: Vec<_> = loaded.broken.iter().map(ToString::to_string).collect();
    assert_eq!(broken.len(), 2);
    assert!(broken[0].contains("15-broken.conflist: key \"plugins[0].type\": missing"), "{broken:?}");
    assert!(broken[1].contains("30-none.conflist: key \"plugins\": no plugins"), "{broken:?}");
}

#[test]
fn a_list_takes_plugins_from_the_folder_of_its_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let extra = dir.path().join("pods");
    fs::create_dir(&extra).expect("a folder");
    fs::write(extra.join("2.conf"), r#"{"type": "tuning"}"#).expect("a file");
    fs::write(extra.join("1.conf"), r#"{"type": "portmap"}"#).expect("a file");
    let list = |inlined: bool| {
        let text = format!(
            r#"{{"name": "pods", "loadOnlyInlinedPlugins": {inlined}, "plugins": [{{"type": "bridge"}}]}}"#
        );
        fs::write(dir.path().join("1.conflist"), text).expect("a file");
        let loaded = load_conf_dir(dir.path()).expect("a folder that can be read");
        let plugins = loaded.networks[0].plugins.iter();
        plugins.map(|plugin| plugin.plugin_type.clone()).collect::<Vec<_>>()
    };
    assert_eq!(list(false), ["bridge", "portmap", "tuning"]);
    assert_eq!(list(true), ["bridge"]);
}

#[test]
fn a_missing_folder_is_empty() {
    let dir = tempfile::tempdir().expect("a folder");
    let loaded = load_conf_dir(&dir.path().join("net.d")).expect("nothing to read");
    assert!(loaded.networks.is_empty() && loaded.broken.is_empty());
}
