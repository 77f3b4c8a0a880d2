use std::fs;

use super::*;

#[test]
fn a_full_log_is_cut_once_and_its_writer_goes_on() {
    let folder = std::env::temp_dir().join(format!("orlop-log-{}", std::process::id()));
    fs::create_dir_all(folder.join("logs")).unwrap();
    let mut writer = open(&folder, "part").unwrap();
    let log = path(&folder, "part");
    writer.write_all(b"12345678").unwrap();
    cut(&log, 8).unwrap();
    assert_eq!(fs::read(&log).unwrap(), b"12345678");
    writer.write_all(b"9").unwrap();
    cut(&log, 8).unwrap();
    writer.write_all(b"new").unwrap();
    assert_eq!(fs::read(&log).unwrap(), b"new");
    assert_eq!(fs::read(log.with_extension("log.1")).unwrap(), b"123456789");
    cut(&path(&folder, "none"), 8).unwrap();
    fs::remove_dir_all(&folder).unwrap();
}
