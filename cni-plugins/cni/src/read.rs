//! Reading files that others write: never more than a document may have, also from one without an end.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use crate::json::DOCUMENT_LIMIT;

/// Reads a whole file of at most [`DOCUMENT_LIMIT`] bytes.
///
/// # Errors
/// Those of the file; [`io::ErrorKind::FileTooLarge`] for one that has more.
pub fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(DOCUMENT_LIMIT as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > DOCUMENT_LIMIT {
        let message = format!("more than {DOCUMENT_LIMIT} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// As [`read_limited`], of text.
///
/// # Errors
/// As there, and [`io::ErrorKind::InvalidData`] for what is not UTF-8.
pub fn read_text_limited(path: &Path) -> io::Result<String> {
    String::from_utf8(read_limited(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests;
