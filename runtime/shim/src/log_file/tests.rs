//! Lines, long lines, and ends without a newline.

use super::*;

fn lines(pieces: &[&[u8]]) -> Vec<(char, usize)> {
    let mut splitter = Splitter::new("stdout");
    let mut bytes = Vec::new();
    for piece in pieces {
        splitter.push(piece, 0, &mut bytes);
    }
    splitter.finish(0, &mut bytes);
    String::from_utf8(bytes)
        .unwrap()
        .lines()
        .map(|line| {
            let rest = line.strip_prefix("1970-01-01T00:00:00.000000000Z stdout ").unwrap();
            (rest.chars().next().unwrap(), rest.len() - 2)
        })
        .collect()
}

#[test]
fn output_becomes_lines() {
    assert_eq!(lines(&[b"a\nbc\n"]), [('F', 1), ('F', 2)]);
    assert_eq!(lines(&[b"a", b"b\n", b"\n"]), [('F', 2), ('F', 0)]);
    assert_eq!(lines(&[b"tail"]), [('P', 4)]);
    assert_eq!(lines(&[b""]), []);
}

#[test]
fn long_lines_are_cut_where_containerd_cuts_them() {
    let exactly = vec![b'x'; MAX_LINE_BYTES];
    assert_eq!(lines(&[&exactly, b"\n"]), [('F', MAX_LINE_BYTES)]);
    let more = vec![b'x'; MAX_LINE_BYTES * 2 + 5];
    assert_eq!(lines(&[&more, b"\n"]), [('P', MAX_LINE_BYTES), ('P', MAX_LINE_BYTES), ('F', 5)]);
    assert_eq!(lines(&[&more[..10], &more]), [('P', MAX_LINE_BYTES), ('P', MAX_LINE_BYTES), ('P', 15)]);
}
