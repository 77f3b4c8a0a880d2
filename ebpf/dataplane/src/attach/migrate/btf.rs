//! The kernel's type information (BTF) of maps' keys and values. Pure.
//!
//! In: the bytes as the kernel or an object has them, and a type's number. Out: its [`Shape`]. Reads what a map of ours can be made of:
//! integers, enumerations, arrays and structures, whatever they are called; anything else is refused. The format is that of the kernel's
//! `Documentation/bpf/btf.rst`, in the byte order of this machine. The bytes are foreign: whatever they say, work and memory are bounded.
//! Property tests stand for a fuzz target: nothing outside this crate can call it.

use super::layout::{Field, Shape};

const MAGIC: u16 = 0xeb9f;
/// Types nested in types.
const MAX_DEPTH: usize = 16;
/// Types and fields that one shape is made of.
const MAX_NODES: usize = 4096;
/// Types in all.
const MAX_TYPES: usize = 65_536;
/// A field's name with its end: what kernels before 6.1 take (`KSYM_NAME_LEN`).
const MAX_NAME: usize = 128;
const WORD: usize = size_of::<u32>();
/// A type's name, its kind and number of parts, and its size or the number of another type.
const TYPE_SIZE: usize = 3 * WORD;
/// A field's name, its type and its place.
const FIELD_SIZE: usize = 3 * WORD;

/// The kinds of types, with the kernel's names.
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// Why bytes tell no shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    #[error("the type information is not well formed")]
    Malformed,
    #[error("type {id} is of kind {kind}, which no map of ours has")]
    Unsupported { id: u32, kind: u32 },
    #[error("a type is too large or nested too deeply")]
    TooLarge,
    #[error("a field's name is too long")]
    LongName,
}

/// Type information, taken apart.
#[derive(Debug)]
pub struct Btf<'a> {
    /// What each type begins with, from number 1 on.
    types: Vec<&'a [u8]>,
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let magic = bytes.first_chunk().map(|magic| u16::from_ne_bytes(*magic));
        if magic != Some(MAGIC) {
            return Err(BtfError::Malformed);
        }
        let body = bytes.get(word(bytes, 1)? as usize..).ok_or(BtfError::Malformed)?;
        let section = |offset: usize| {
            let (start, length) = (word(bytes, offset)? as usize, word(bytes, offset + 1)? as usize);
            let end = start.checked_add(length).ok_or(BtfError::Malformed)?;
            body.get(start..end).ok_or(BtfError::Malformed)
        };
        let (mut rest, strings) = (section(2)?, section(4)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            if types.len() >= MAX_TYPES {
                return Err(BtfError::TooLarge);
            }
            let (kind, parts) = kind_and_parts(rest)?;
            let length = TYPE_SIZE + length_behind(kind, parts)?;
            types.push(rest.get(..length).ok_or(BtfError::Malformed)?);
            rest = &rest[length..];
        }
        Ok(Self { types, strings })
    }

    pub fn shape(&self, id: u32) -> Result<Shape, BtfError> {
        self.shape_within(id, MAX_DEPTH, &mut { MAX_NODES })
    }

    fn shape_within(&self, id: u32, depth: usize, nodes: &mut usize) -> Result<Shape, BtfError> {
        if depth == 0 || *nodes == 0 {
            return Err(BtfError::TooLarge);
        }
        *nodes -= 1;
        let index = (id as usize).checked_sub(1).ok_or(BtfError::Malformed)?;
        let found = self.types.get(index).ok_or(BtfError::Malformed)?;
        let (kind, parts) = kind_and_parts(found)?;
        match kind {
            kind::INT => number(found),
            kind::ENUM | kind::ENUM64 => {
                Ok(Shape::Number { size: word(found, 2)? as usize, is_signed: has_flag(found)? })
            }
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                self.shape_within(word(found, 2)?, depth - 1, nodes)
            }
            kind::ARRAY => {
                let element = Box::new(self.shape_within(word(found, 3)?, depth - 1, nodes)?);
                let array = Shape::Array { element, length: word(found, 5)? as usize };
                array.size().ok_or(BtfError::TooLarge)?;
                Ok(array)
            }
            // Bit fields are marked by the flag.
            kind::STRUCT if !has_flag(found)? => {
                let size = word(found, 2)? as usize;
                let fields = found[TYPE_SIZE..].chunks_exact(FIELD_SIZE).take(parts as usize);
                let fields = fields.map(|field| self.field(field, size, depth - 1, nodes));
                Ok(Shape::Struct { size, fields: fields.collect::<Result<_, _>>()? })
            }
            kind => Err(BtfError::Unsupported { id, kind }),
        }
    }

    fn field(&self, field: &[u8], size: usize, depth: usize, nodes: &mut usize) -> Result<Field, BtfError> {
        let (name, id, bits) = (self.name(word(field, 0)?)?, word(field, 1)?, word(field, 2)?);
        if !bits.is_multiple_of(u8::BITS) {
            return Err(BtfError::Malformed);
        }
        let offset = (bits / u8::BITS) as usize;
        let shape = self.shape_within(id, depth, nodes)?;
        let end = shape.size().and_then(|length| offset.checked_add(length)).ok_or(BtfError::TooLarge)?;
        if end > size {
            return Err(BtfError::Malformed);
        }
        Ok(Field { name, offset, shape })
    }

    fn name(&self, offset: u32) -> Result<String, BtfError> {
        let bytes = self.strings.get(offset as usize..).ok_or(BtfError::Malformed)?;
        let (name, is_cut) = bytes.get(..MAX_NAME).map_or((bytes, false), |name| (name, true));
        let unended = if is_cut { BtfError::LongName } else { BtfError::Malformed };
        let end = name.iter().position(|byte| *byte == 0).ok_or(unended)?;
        String::from_utf8(name[..end].to_vec()).map_err(|_| BtfError::Malformed)
    }
}

fn number(found: &[u8]) -> Result<Shape, BtfError> {
    const SIGNED: u32 = 1 << 24;
    let (size, says) = (word(found, 2)? as usize, word(found, 3)?);
    let (bits, offset) = (says & 0xff, says >> 16 & 0xff);
    if bits as usize != size * u8::BITS as usize || offset != 0 {
        return Err(BtfError::Malformed);
    }
    Ok(Shape::Number { size, is_signed: says & SIGNED != 0 })
}

fn kind_and_parts(found: &[u8]) -> Result<(u32, u32), BtfError> {
    let says = word(found, 1)?;
    Ok((says >> 24 & 0x1f, says & 0xffff))
}

fn has_flag(found: &[u8]) -> Result<bool, BtfError> {
    Ok(word(found, 1)? >> 31 == 1)
}

/// The length of what follows a type's first words.
fn length_behind(kind: u32, parts: u32) -> Result<usize, BtfError> {
    let words = match kind {
        kind::PTR | kind::FWD | kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT => 0,
        kind::FUNC | kind::FLOAT | kind::TYPE_TAG => 0,
        kind::INT | kind::VAR | kind::DECL_TAG => 1,
        kind::ARRAY => 3,
        kind::ENUM | kind::FUNC_PROTO => 2 * parts as usize,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 3 * parts as usize,
        _ => return Err(BtfError::Malformed),
    };
    Ok(words * WORD)
}

fn word(bytes: &[u8], index: usize) -> Result<u32, BtfError> {
    let word = bytes.get(index * WORD..).and_then(<[u8]>::first_chunk);
    word.map(|word| u32::from_ne_bytes(*word)).ok_or(BtfError::Malformed)
}

#[cfg(test)]
mod tests;
