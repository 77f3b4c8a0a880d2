//! Frames as bytes: encoding one, and taking the first complete one out of what has arrived.

use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(test)]
mod tests;

/// Bytes of JSON in one frame.
pub const MAX_FRAME_BYTES: usize = 4 * 1024 * 1024;
const PREFIX_BYTES: usize = 4;

/// A frame that cannot be sent or understood; the connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than allowed.
    #[error("frame: {bytes} bytes are more than {MAX_FRAME_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not the JSON that was expected.
    #[error("frame: not a message of this protocol")]
    Malformed {
        /// Why.
        source: serde_json::Error,
    },
}

/// One message as a frame.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; PREFIX_BYTES];
    serde_json::to_writer(&mut bytes, message).map_err(|source| FrameError::Malformed { source })?;
    let length = bytes.len() - PREFIX_BYTES;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { bytes: length });
    }
    bytes[..PREFIX_BYTES].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(bytes)
}

/// Takes the first message out of `buffer` when all of it is there.
///
/// # Errors
/// [`FrameError`]; the buffer's content is then meaningless.
pub fn take_frame<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, FrameError> {
    let Some(prefix) = buffer.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes(*prefix) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { bytes: length });
    }
    let Some(json) = buffer.get(PREFIX_BYTES..PREFIX_BYTES + length) else { return Ok(None) };
    let message = serde_json::from_slice(json).map_err(|source| FrameError::Malformed { source })?;
    buffer.drain(..PREFIX_BYTES + length);
    Ok(Some(message))
}
