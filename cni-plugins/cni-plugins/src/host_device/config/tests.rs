//! Tables: which key counts, and what is refused.

use cni::ErrorReply;
use serde_json::{Value, json};

use super::{Object, Selector, selector};

fn read(config: Value) -> Result<Selector, ErrorReply> {
    let map = config.as_object().expect("an object");
    selector(&Object::root(map))
}

#[test]
fn of_several_keys_the_first_counts() {
    let mut config = json!({
        "device": "eth1", "hwaddr": "02:00:00:00:00:01", "kernelpath": "/sys/devices/a", "pciBusID": "0000:3b:00.1",
    });
    let order = [
        ("device", Selector::Name("eth1".to_owned())),
        ("hwaddr", Selector::Hardware("02:00:00:00:00:01".parse().expect("an address"))),
        ("kernelpath", Selector::KernelPath("/sys/devices/a".into())),
        ("pciBusID", Selector::Pci("0000:3b:00.1".to_owned())),
    ];
    for (key, expected) in order {
        assert_eq!(read(config.clone()), Ok(expected), "{key}");
        config[key] = json!("");
    }
    let error = read(config).expect_err("none is left");
    assert_eq!(
        (error.code, error.msg.as_str()),
        (7, r#"specify either "device", "hwaddr", "kernelpath" or "pciBusID""#)
    );
}

#[test]
fn impossible_devices_say_why() {
    for (config, code, message) in [
        (json!({"device": "a/b"}), 7, r#"key "device": invalid interface name "a/b""#),
        (json!({"device": 7}), 6, r#"key "device": expected a string, found 7"#),
        (json!({"hwaddr": "zz"}), 7, r#"invalid hardware address "zz""#),
        (json!({"kernelpath": "devices/a"}), 7, r#"kernel device path "devices/a" must be absolute"#),
        (json!({"kernelpath": "/sys/devices/../a"}), 7, "must be absolute and begin with /sys/devices/"),
        (json!({"pciBusID": "../../x"}), 7, r#"key "pciBusID": "../../x": expected the name of a device"#),
        (json!({"runtimeConfig": {"deviceID": "a/b"}}), 7, r#"key "runtimeConfig.deviceID": "a/b""#),
        (
            json!({"runtimeConfig": {"deviceID": "none"}}),
            7,
            "runtime config DeviceID none not found or unsupported",
        ),
    ] {
        let error = read(config).expect_err(message);
        assert_eq!(error.code, code, "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
}
