//! Option strings and the mount table's escapes.

use super::*;

#[test]
fn overlay_options_list_the_topmost_first() {
    let overlay =
        Overlay { lower: vec!["l/b".into(), "l/a".into()], upper: Some("u".into()), work: Some("w".into()) };
    assert_eq!(overlay.options().unwrap(), "lowerdir=l/b:l/a,upperdir=u,workdir=w");
    let read_only = Overlay { lower: vec!["l/a".into()], ..Overlay::default() };
    assert_eq!(read_only.options().unwrap(), "ro,lowerdir=l/a");
}

#[test]
fn overlay_options_refuse_separators_and_more_than_a_page() {
    let odd = Overlay { lower: vec!["a:b".into()], ..Overlay::default() };
    assert_eq!(odd.options().unwrap_err().errno(), Some(libc::EINVAL));
    let long = Overlay { lower: vec!["x".repeat(100).into(); 50], ..Overlay::default() };
    assert_eq!(long.options().unwrap_err().errno(), Some(libc::E2BIG));
}

#[test]
fn mount_table_lines() {
    let line = br"36 35 98:0 /mnt1 /a\040b rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
    let entry = parse_entry(line).unwrap();
    assert_eq!(entry.root, Path::new("/mnt1"));
    assert_eq!(entry.mount_point, Path::new("/a b"));
    assert_eq!((entry.filesystem.as_str(), entry.super_options.as_str()), ("ext3", "rw,errors=continue"));
    assert_eq!(parse_entry(b"nonsense"), None);
}
