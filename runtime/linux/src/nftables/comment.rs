//! Comments of tables, chains and rules, and tags: user data that the kernel keeps and does not read.
//!
//! libnftnl's format: entries of a type byte, a length byte, and the bytes. A comment is type 0 and ends with a zero, which
//! counts; the tool passes over types that it does not know. The kernel takes 256 bytes.

/// Bytes that a comment may have.
pub const COMMENT_LIMIT: usize = 253;

const COMMENT: u8 = 0;
/// Ours; libnftnl counts its own up from 0.
const TAG: u8 = 200;

/// What `text` is as user data. What does not fit is cut off.
pub(super) fn write(text: &str) -> Vec<u8> {
    let end = (0..=COMMENT_LIMIT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let mut value = text.as_bytes()[..end].to_vec();
    value.push(0);
    entry(COMMENT, &value)
}

/// A tag as user data.
pub(super) fn write_tag(bytes: &[u8]) -> Vec<u8> {
    entry(TAG, &bytes[..bytes.len().min(usize::from(u8::MAX))])
}

/// The comment among user data.
pub(super) fn read(data: &[u8]) -> Option<String> {
    let value = find(data, COMMENT)?;
    Some(String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned())
}

/// The tag among user data.
pub(super) fn read_tag(data: &[u8]) -> Option<Vec<u8>> {
    find(data, TAG).map(<[u8]>::to_vec)
}

fn entry(kind: u8, value: &[u8]) -> Vec<u8> {
    let mut data = vec![kind, u8::try_from(value.len()).unwrap_or(u8::MAX)];
    data.extend(value);
    data
}

fn find(mut data: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == wanted {
            return Some(value);
        }
        data = &rest[value.len()..];
    }
    None
}
