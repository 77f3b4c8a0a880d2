use super::*;

#[test]
fn lines_that_are_no_entries_are_passed_over() {
    let text = "root:x:0:0:root:/root:/bin/sh\n\n# comment\n+::::::\nno:x:one:1::/no:\nshort:x:7:8\nweb:x:33:44::/srv:\n";
    let expected = [
        Entry { name: "root", uid: 0, gid: 0, home: "/root" },
        Entry { name: "short", uid: 7, gid: 8, home: "" },
        Entry { name: "web", uid: 33, gid: 44, home: "/srv" },
    ];
    assert_eq!(entries(text).collect::<Vec<_>>(), expected);
}

#[test]
fn a_name_in_another_encoding_does_no_harm_to_others() {
    let text = read(&b"j\xf6rg:x:1:1:J\xf6rg:/home/j:\nweb:x:33:44::/srv:\n"[..]).unwrap();
    assert_eq!(entries(&text).map(|entry| entry.uid).collect::<Vec<_>>(), [1, 33]);
}

#[test]
fn a_file_without_end_is_read_to_a_limit() {
    assert_eq!(read(std::io::repeat(b'x')).unwrap().len() as u64, MAX_BYTES);
}
