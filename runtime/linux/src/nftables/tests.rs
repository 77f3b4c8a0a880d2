//! The formats that need no kernel.

use super::{COMMENT_LIMIT, comment};

#[test]
fn comments_read_back() {
    for text in ["", "hi", "6fd94d501e58f0aa, net: pods", &"é".repeat(126)] {
        let data = comment::write(text);
        assert_eq!(data.len(), text.len() + 3, "{text:?}");
        assert_eq!(comment::read(&data).as_deref(), Some(text));
    }
    let long = "é".repeat(200);
    assert_eq!(comment::read(&comment::write(&long)), Some("é".repeat(COMMENT_LIMIT / 2)));
}

#[test]
fn foreign_user_data_is_passed_over_or_ignored() {
    assert_eq!(comment::read(&[1, 2, 9, 9, 0, 2, b'a', 0]).as_deref(), Some("a"));
    for malformed in [&[][..], &[0], &[0, 5, b'a'], &[7, 0]] {
        assert_eq!(comment::read(malformed), None, "{malformed:?}");
    }
}

#[test]
fn a_tag_stands_beside_a_comment() {
    let data = [comment::write("hi"), comment::write_tag(&[7, 0, 9])].concat();
    assert_eq!(comment::read(&data).as_deref(), Some("hi"));
    assert_eq!(comment::read_tag(&data), Some(vec![7, 0, 9]));
    assert_eq!(comment::read_tag(&comment::write("hi")), None);
}
