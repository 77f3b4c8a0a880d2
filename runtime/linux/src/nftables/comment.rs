//! Comments of tables, chains and rules: user data that the kernel keeps and does not read.
//!
//! libnftnl's format: entries of a type byte, a length byte, and the bytes; a comment is type 0 and ends with a zero,
//! which counts.

/// Bytes that a comment may have.
pub const COMMENT_LIMIT: usize = 254;

const COMMENT: u8 = 0;

/// What `text` is as user data. What does not fit is cut off.
pub(super) fn write(text: &str) -> Vec<u8> {
    let end = (0..=COMMENT_LIMIT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let text = &text.as_bytes()[..end];
    let mut data = vec![COMMENT, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
    data.extend(text);
    data.push(0);
    data
}

/// The comment among user data.
pub(super) fn read(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == COMMENT {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        data = &rest[value.len()..];
    }
    None
}
