//! Where fuzzers, and the tests that replay what fuzzers found, put foreign bytes in.

use crate::{AddResult, ErrorReply, NetworkList, Version, args::CniArgs, json};

/// A document that any of the parsers may be given; what can be read as a result can be written again, and is then the same.
pub fn document(bytes: &[u8]) {
    drop(NetworkList::parse(bytes));
    drop(serde_json::from_slice::<ErrorReply>(bytes));
    crate::cache::fuzz(bytes);
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(args) = CniArgs::parse(text)
    {
        drop(args.ignores_unknown());
        assert_eq!(CniArgs::parse(&args.to_string()).as_ref(), Ok(&args));
    }
    let Ok(map) = json::parse_object(bytes) else { return };
    let Ok(result) = AddResult::from_json(&map) else { return };
    for version in Version::ALL {
        drop(result.to_json(version));
    }
    if let Ok(serde_json::Value::Object(written)) = result.to_json(Version::NEWEST) {
        assert_eq!(AddResult::from_json(&written), Ok(result));
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn documents_of_the_corpus_end() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/document");
        let mut count = 0;
        for entry in fs::read_dir(folder).expect("a corpus") {
            super::document(&fs::read(entry.expect("an entry").path()).expect("a file"));
            count += 1;
        }
        assert!(count > 0);
    }
}
