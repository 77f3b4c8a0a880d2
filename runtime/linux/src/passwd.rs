//! Users as /etc/passwd has them (passwd(5)): the text of such a file, which may be an image's and so anything, and its entries.
//!
//! Input: an open file; output: at most [`MAX_BYTES`] of it as text, and the lines that are entries; others are passed over. Asks no name service.

use std::io::{self, Read};

#[cfg(test)]
mod tests;

/// Bytes of a passwd or group file that are looked at.
const MAX_BYTES: u64 = 1 << 20;

/// A user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Login name.
    pub name: &'a str,
    /// User id.
    pub uid: u32,
    /// Id of the user's own group.
    pub gid: u32,
    /// Home directory; may be empty.
    pub home: &'a str,
}

/// The text of a passwd or group file. Names in other encodings than UTF-8 do no harm to the other entries.
///
/// # Errors
/// Those of reading.
pub fn read(file: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The entries of a passwd file.
pub fn entries(text: &str) -> impl Iterator<Item = Entry<'_>> {
    text.lines().filter_map(entry)
}

/// `name:password:uid:gid:comment:home:shell`; what is behind the group may be missing.
fn entry(line: &str) -> Option<Entry<'_>> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Entry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
}
