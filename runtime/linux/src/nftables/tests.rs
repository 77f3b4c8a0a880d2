//! The formats and decisions that need no kernel.

use std::cell::Cell;

use super::{COMMENT_LIMIT, LIST_TRIES, comment, list_unchanged};

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

#[test]
fn a_listing_counts_only_where_nothing_changed_under_it() {
    for (changes, is_listed) in [(0, true), (LIST_TRIES - 1, true), (LIST_TRIES, false)] {
        // Each of the first listings has a transaction under it.
        let lists = Cell::new(0);
        let generation = || Ok(u32::try_from(lists.get().min(changes)).expect("a small number"));
        let list = || {
            lists.set(lists.get() + 1);
            Ok(lists.get())
        };
        let listed = list_unchanged(generation, list).expect("nothing fails");
        assert_eq!(listed, is_listed.then_some(changes + 1), "{changes} changes");
    }
}
