//! The framing of SPDY/3.1, as `kubectl port-forward` speaks it. Pure.
//!
//! In: bytes of a peer, in pieces of any size. Out: frames, or why the connection cannot go on; and the bytes of our own
//! frames. Every length that a peer claims is held against a limit before memory is taken for it. Flow control is left to
//! the connection below: the implementation that every Kubernetes client uses (moby's spdystream) neither keeps nor announces
//! windows, so a peer that waited for them would wait for ever. Refuses to know what streams are for.
//!
//! Layouts are those of draft-mbelshe-httpbis-spdy-00, section 2.2 and 2.6, with the WINDOW_UPDATE of SPDY/3.1.

mod headers;
#[cfg(test)]
mod tests;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use headers::HeaderReader;
pub use headers::{HeaderError, HeaderWriter, Headers};

/// The longest data that one frame may carry; kubectl's frames have 32 KiB.
pub const MAX_DATA_BYTES: usize = 1024 * 1024;
/// The longest control frame.
const MAX_CONTROL_BYTES: usize = 64 * 1024;
/// Bytes before the content of every frame.
const HEADER_BYTES: usize = 8;
const VERSION: u16 = 3;
const CONTROL_BIT: u32 = 1 << 31;
const ID_MASK: u32 = CONTROL_BIT - 1;
const FLAG_FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    ProtocolError = 1,
    RefusedStream = 3,
}

/// Why a connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("version {version} of SPDY is not spoken")]
    Version { version: u16 },
    #[error("a frame of {length} bytes is longer than {limit}")]
    TooLong { length: usize, limit: usize },
    #[error("a control frame of kind {kind} ends too early")]
    Short { kind: u16 },
    #[error("stream 0 does not exist")]
    NoStream,
    #[error("headers: {0}")]
    Headers(HeaderError),
}

/// What a peer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    Reset {
        id: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    Data {
        id: u32,
        fin: bool,
        data: Bytes,
    },
    /// Headers after the first ones, settings, windows, and kinds that are not known: nothing has to be done.
    Other {
        kind: u16,
    },
}

/// Cuts a peer's bytes into frames.
pub struct Decoder {
    buffer: BytesMut,
    headers: HeaderReader,
}

impl Decoder {
    pub fn new() -> Self {
        Self { buffer: BytesMut::new(), headers: HeaderReader::new() }
    }

    /// Takes bytes in. The caller limits a piece, and takes all frames out before the next one.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. After an error nothing that follows can be understood.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        let Some(start) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let mut start = &start[..];
        let (word, rest) = (start.get_u32(), start.get_u32());
        let (flags, length) = ((rest >> 24) as u8, (rest & 0x00ff_ffff) as usize);
        let is_control = word & CONTROL_BIT != 0;
        let limit = if is_control { MAX_CONTROL_BYTES } else { MAX_DATA_BYTES };
        if length > limit {
            return Err(Error::TooLong { length, limit });
        }
        if self.buffer.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        let content = self.buffer.split_to(length).freeze();
        let fin = flags & FLAG_FIN != 0;
        if !is_control {
            return Ok(Some(Frame::Data { id: stream(word)?, fin, data: content }));
        }
        let (version, kind) = ((word >> 16) as u16 & !0x8000, word as u16);
        if version != VERSION {
            return Err(Error::Version { version });
        }
        self.control(kind, fin, content).map(Some)
    }

    fn control(&mut self, kind: u16, fin: bool, mut content: Bytes) -> Result<Frame, Error> {
        let mut number = || content.try_get_u32().map_err(|_| Error::Short { kind });
        match kind {
            SYN_STREAM => {
                let id = stream(number()?)?;
                let _associated = number()?;
                let _priority_and_slot = content.try_get_u16().map_err(|_| Error::Short { kind })?;
                let headers = self.headers.read(&content).map_err(Error::Headers)?;
                Ok(Frame::SynStream { id, fin, headers })
            }
            SYN_REPLY | HEADERS => {
                let _id = number()?;
                // All blocks of a connection are one compressed stream: none can be left out.
                self.headers.read(&content).map_err(Error::Headers)?;
                Ok(Frame::Other { kind })
            }
            RST_STREAM => Ok(Frame::Reset { id: stream(number()?)? }),
            PING => Ok(Frame::Ping { id: number()? }),
            GOAWAY => Ok(Frame::GoAway),
            // SETTINGS, WINDOW_UPDATE, and what nobody sends.
            _ => Ok(Frame::Other { kind }),
        }
    }
}

fn stream(word: u32) -> Result<u32, Error> {
    match word & ID_MASK {
        0 => Err(Error::NoStream),
        id => Ok(id),
    }
}

/// Accepts a stream, without headers of our own.
pub fn syn_reply(id: u32, headers: &mut HeaderWriter) -> Bytes {
    let block = headers.write(&[]);
    let mut content = BytesMut::with_capacity(4 + block.len());
    content.put_u32(id);
    content.put_slice(&block);
    control(SYN_REPLY, &content)
}

pub fn reset(id: u32, status: Reset) -> Bytes {
    numbers(RST_STREAM, &[id, status as u32])
}

/// The answer to a ping is the ping.
pub fn ping(id: u32) -> Bytes {
    numbers(PING, &[id])
}

/// Ends the connection because of what the peer sent; `last` is the last stream that was taken.
pub fn go_away(last: u32) -> Bytes {
    numbers(GOAWAY, &[last, Reset::ProtocolError as u32])
}

/// Bytes of a stream. At most [`MAX_DATA_BYTES`].
pub fn data(id: u32, bytes: &[u8]) -> Bytes {
    data_frame(id, 0, bytes)
}

/// The end of a stream from our side.
pub fn end(id: u32) -> Bytes {
    data_frame(id, FLAG_FIN, &[])
}

fn data_frame(id: u32, flags: u8, bytes: &[u8]) -> Bytes {
    debug_assert!(bytes.len() <= MAX_DATA_BYTES, "data of {} bytes does not fit", bytes.len());
    frame(id & ID_MASK, flags, bytes)
}

fn numbers(kind: u16, numbers: &[u32]) -> Bytes {
    let mut content = BytesMut::with_capacity(4 * numbers.len());
    numbers.iter().for_each(|number| content.put_u32(*number));
    control(kind, &content)
}

fn control(kind: u16, content: &[u8]) -> Bytes {
    frame(CONTROL_BIT | u32::from(VERSION) << 16 | u32::from(kind), 0, content)
}

fn frame(word: u32, flags: u8, content: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEADER_BYTES + content.len());
    frame.put_u32(word);
    frame.put_u32(u32::from(flags) << 24 | content.len() as u32);
    frame.put_slice(content);
    frame.freeze()
}
