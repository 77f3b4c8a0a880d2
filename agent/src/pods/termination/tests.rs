use super::*;

#[test]
fn lines_are_joined_where_they_were_cut() {
    let log = b"2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr P tw\n2026-01-01T00:00:00Z stderr F o\n";
    assert_eq!(log_text(log), "one\ntwo\n");
    assert_eq!(log_text(b"cut line\n2026-01-01T00:00:00Z stdout F x y z\n"), "x y z\n");
    assert_eq!(log_text(b""), "");
}

#[test]
fn a_long_log_is_cut_at_its_beginning() {
    let mut log = Vec::new();
    for number in 0..200 {
        log.extend(format!("2026-01-01T00:00:00Z stdout F {number:0100}\n").bytes());
    }
    let text = log_text(&log);
    assert_eq!(text.len(), LOG_BYTES);
    assert!(text.ends_with("199\n"));
}

#[test]
fn a_symbolic_link_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("secret");
    std::fs::write(&target, "secret").unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert_eq!(read_message(&target), "secret");
    assert_eq!(read_message(&link), "");
}
