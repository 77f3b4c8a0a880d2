//! Header blocks of SPDY/3: names and values, compressed with a dictionary that both sides know. Pure.
//!
//! All blocks of one direction are one zlib stream, flushed after each block; so a reader that skipped one would understand
//! none after it. A block counts its pairs, and each name and value says its length; what it unfolds to is limited.

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The longest block when it is unfolded.
const MAX_BLOCK_BYTES: usize = 16 * 1024;
/// Pairs of one block.
const MAX_PAIRS: usize = 64;

/// Names of the dictionary (draft-mbelshe-httpbis-spdy-00, section 2.6.10.1), each of which has its length in front.
const DICTIONARY_NAMES: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
     accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
     content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
     if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
     proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
     user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
     keep-alive origin";
/// What follows the names.
const DICTIONARY_TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
     203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
     404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
     Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
     chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
     publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary, whose checksum both sides compare.
pub(super) fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::new();
    for name in DICTIONARY_NAMES.split_whitespace() {
        // The only one with a space in it.
        put(&mut bytes, &name.replace('_', " "));
    }
    bytes.put_slice(DICTIONARY_TEXT.as_bytes());
    bytes
}

/// Why a block cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("the block is not compressed with the dictionary of SPDY/3")]
    Compression,
    #[error("the block unfolds to more than {MAX_BLOCK_BYTES} bytes or {MAX_PAIRS} pairs")]
    TooLong,
    #[error("the block's lengths do not fit its content")]
    Malformed,
}

/// Names in lower case and values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of a name, which is given in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// Reads a peer's blocks in their order.
pub struct HeaderReader {
    inflate: Decompress,
}

impl HeaderReader {
    pub fn new() -> Self {
        Self { inflate: Decompress::new(true) }
    }

    pub fn read(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        parse(&self.unfold(block)?)
    }

    fn unfold(&mut self, mut block: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let mut unfolded = vec![0; MAX_BLOCK_BYTES];
        let mut length = 0;
        while !block.is_empty() {
            let (taken, made) = (self.inflate.total_in(), self.inflate.total_out());
            let result = self.inflate.decompress(block, &mut unfolded[length..], FlushDecompress::Sync);
            let taken = (self.inflate.total_in() - taken) as usize;
            let made = (self.inflate.total_out() - made) as usize;
            block = &block[taken.min(block.len())..];
            length += made;
            match result {
                Ok(Status::StreamEnd) => return Err(HeaderError::Compression),
                Ok(_) if length == unfolded.len() => return Err(HeaderError::TooLong),
                Ok(_) if taken == 0 && made == 0 => return Err(HeaderError::Compression),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&dictionary()).map_err(|_| HeaderError::Compression)?;
                }
                Err(_) => return Err(HeaderError::Compression),
            }
        }
        unfolded.truncate(length);
        Ok(unfolded)
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, HeaderError> {
    let count = block.try_get_u32().map_err(|_| HeaderError::Malformed)? as usize;
    if count > MAX_PAIRS {
        return Err(HeaderError::TooLong);
    }
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        let name = take(&mut block)?.to_ascii_lowercase();
        pairs.push((name, take(&mut block)?));
    }
    if block.is_empty() { Ok(Headers(pairs)) } else { Err(HeaderError::Malformed) }
}

fn take(block: &mut &[u8]) -> Result<String, HeaderError> {
    let length = block.try_get_u32().map_err(|_| HeaderError::Malformed)? as usize;
    let (text, rest) = block.split_at_checked(length).ok_or(HeaderError::Malformed)?;
    *block = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

fn put(bytes: &mut Vec<u8>, text: &str) {
    bytes.put_u32(text.len() as u32);
    bytes.put_slice(text.as_bytes());
}

/// Writes our own blocks in their order.
pub struct HeaderWriter {
    deflate: Compress,
}

impl HeaderWriter {
    pub fn new() -> Self {
        let mut deflate = Compress::new(Compression::default(), true);
        if let Err(error) = deflate.set_dictionary(&dictionary()) {
            // Only a stream that has begun refuses a dictionary.
            tracing::error!(%error, "set the dictionary of SPDY headers");
        }
        Self { deflate }
    }

    pub fn write(&mut self, pairs: &[(&str, &str)]) -> BytesMut {
        let mut block = Vec::new();
        block.put_u32(pairs.len() as u32);
        for (name, value) in pairs {
            put(&mut block, name);
            put(&mut block, value);
        }
        // Deflate never adds more than a few bytes to what it cannot fold, and a flush a few more.
        let mut folded = Vec::with_capacity(block.len() + block.len() / 8 + 64);
        if let Err(error) = self.deflate.compress_vec(&block, &mut folded, FlushCompress::Sync) {
            tracing::error!(%error, "compress SPDY headers");
        }
        folded.as_slice().into()
    }
}
