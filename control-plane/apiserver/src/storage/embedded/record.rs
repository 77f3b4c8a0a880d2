//! The bytes of one record: kind of write, key, value.
//!
//! Layout: one byte (1 put, 2 delete), key length as u32 little-endian, key (UTF-8), value. Refuses anything else.

use bytes::Bytes;

use super::super::{Key, Write};

const PUT: u8 = 1;
const DELETE: u8 = 2;
const HEADER: usize = 5;

pub(super) struct Record;

impl Record {
    pub(super) fn encode(write: &Write) -> Vec<u8> {
        let (tag, key, value) = match write {
            Write::Put { key, value } => (PUT, key, value),
            Write::Delete { key, last } => (DELETE, key, last),
        };
        let key = key.0.as_bytes();
        let mut bytes = Vec::with_capacity(HEADER + key.len() + value.len());
        bytes.push(tag);
        // Keys are bounded by the name rules (a few hundred bytes).
        bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Write> {
        let (tag, rest) = bytes.split_first()?;
        let (length, rest) = rest.split_at_checked(HEADER - 1)?;
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        let (key, value) = rest.split_at_checked(length)?;
        let key = Key(std::str::from_utf8(key).ok()?.into());
        let value = Bytes::copy_from_slice(value);
        match *tag {
            PUT => Some(Write::Put { key, value }),
            DELETE => Some(Write::Delete { key, last: value }),
            _ => None,
        }
    }
}
