//! A table for `resolv.conf`.

use std::path::Path;

use cni::Dns;

use super::{parse, read};

#[test]
fn keywords_are_read_and_the_rest_is_passed_over() {
    let text = "# made by hand\nnameserver 10.0.0.10\n nameserver fd00::10 \n;x\ndomain a.example\ndomain b.example c.example\n\
                search one.example two.example\noptions ndots:5 timeout:1\nsortlist 1.2.3.4\nnameserver\n\n";
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let expected = Dns {
        nameservers: words(&["10.0.0.10", "fd00::10"]),
        domain: Some("b.example".to_owned()),
        search: words(&["one.example", "two.example"]),
        options: words(&["ndots:5", "timeout:1"]),
    };
    assert_eq!(parse(text), expected);
    assert_eq!(parse(""), Dns::default());
}

#[test]
fn a_file_without_an_end_is_refused() {
    assert_eq!(
        read(Path::new("/dev/zero")).expect_err("it never ends").to_string(),
        "more than 1048576 bytes"
    );
}
