//! Files that are small, too large, and endless.

use std::{fs, io::ErrorKind, path::Path};

use super::{DOCUMENT_LIMIT, read_limited, read_text_limited};

#[test]
fn a_file_is_read_whole_or_not_at_all() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("file");
    for (size, is_read) in [(0, true), (DOCUMENT_LIMIT, true), (DOCUMENT_LIMIT + 1, false)] {
        fs::write(&path, vec![b' '; size]).expect("a file");
        let read = read_limited(&path);
        assert_eq!(
            read.as_ref().map(Vec::len).map_err(std::io::Error::kind),
            if is_read { Ok(size) } else { Err(ErrorKind::FileTooLarge) }
        );
    }
    let endless = read_text_limited(Path::new("/dev/zero")).expect_err("it never ends");
    assert_eq!(endless.to_string(), "more than 1048576 bytes");
    fs::write(&path, [0xff]).expect("a file");
    assert_eq!(read_text_limited(&path).expect_err("no text").kind(), ErrorKind::InvalidData);
}
