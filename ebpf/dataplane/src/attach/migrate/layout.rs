//! How two layouts of one map's keys or values relate. Pure.
//!
//! In: the shape of the old one and of the new one, as `btf` reads them. Out: a [`Conversion`], or the field that stands in its way. What
//! has the same name is the same: a number may be wider or narrower than it was, a field that is new is zero, and what vanished is
//! dropped. `reserved…` says nothing. Refused is what nobody can convert without knowing its meaning: a number that was a structure, one
//! that had a sign, and another width of one in network byte order.

use std::ops::Range;

/// Copies and conversions of numbers in one conversion, at most, and elements of an array whose elements differ.
const MAX_STEPS: usize = 4096;
/// Bytes of a key or value.
const MAX_SIZE: usize = 65_536;

/// What a type of a map looks like in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    Number { size: usize, is_signed: bool },
    Array { element: Box<Shape>, length: usize },
    Struct { size: usize, fields: Vec<Field> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub offset: usize,
    pub shape: Shape,
}

impl Shape {
    /// In bytes; `None` beyond what a number holds.
    pub fn size(&self) -> Option<usize> {
        match self {
            Self::Number { size, .. } | Self::Struct { size, .. } => Some(*size),
            Self::Array { element, length } => element.size()?.checked_mul(*length),
        }
    }

    /// Where the numbers of a structure are that programs read and write as one: its own, of 4 or 8 bytes.
    pub fn words(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        let fields = if let Self::Struct { fields, .. } = self { fields.as_slice() } else { &[] };
        fields.iter().filter_map(|field| match field.shape {
            Shape::Number { size: size @ (4 | 8), .. } if field.offset.is_multiple_of(size) => {
                Some((field.name.as_str(), field.offset..field.offset + size))
            }
            _ => None,
        })
    }
}

/// Why what a map holds cannot be converted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("field {path} is of another kind than it was")]
    Kind { path: String },
    #[error("field {path} is in network byte order and has another width than it had")]
    Width { path: String },
    #[error("the layouts differ in too many places")]
    TooLarge,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Copy { from: usize, to: usize, length: usize },
    Number { from: Range<usize>, to: Range<usize>, is_signed: bool },
}

/// Makes a key or value of the new layout from one of the old.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversion {
    old_size: usize,
    new_size: usize,
    steps: Vec<Step>,
}

impl Conversion {
    /// The fields of the outermost structure that `forget` names become zero.
    pub fn between(old: &Shape, new: &Shape, forget: &[&str]) -> Result<Self, Mismatch> {
        let size = |shape: &Shape| shape.size().filter(|size| *size <= MAX_SIZE).ok_or(Mismatch::TooLarge);
        let (old_size, new_size) = (size(old)?, size(new)?);
        let mut conversion = Self { old_size, new_size, steps: Vec::new() };
        match (old, new) {
            (Shape::Struct { fields: old, .. }, Shape::Struct { fields: new, .. }) if !forget.is_empty() => {
                conversion.add_fields(old, new, Place::default(), forget)?;
            }
            _ => conversion.add(old, new, &Place::default())?,
        }
        Ok(conversion)
    }

    /// `None` if `old` holds a number that the new layout has no room for, or has another size than the old layout.
    pub fn apply(&self, old: &[u8]) -> Option<Vec<u8>> {
        if old.len() != self.old_size {
            return None;
        }
        let mut new = vec![0; self.new_size];
        for step in &self.steps {
            match step {
                Step::Copy { from, to, length } => {
                    new.get_mut(*to..to + length)?.copy_from_slice(old.get(*from..from + length)?);
                }
                Step::Number { from, to, is_signed } => {
                    let number = read_number(old.get(from.clone())?, *is_signed)?;
                    write_number(new.get_mut(to.clone())?, number, *is_signed)?;
                }
            }
        }
        Some(new)
    }

    fn add(&mut self, old: &Shape, new: &Shape, place: &Place<'_>) -> Result<(), Mismatch> {
        match (old, new) {
            _ if old == new => self.copy(place, new.size().ok_or(Mismatch::TooLarge)?),
            (Shape::Struct { fields: old, .. }, Shape::Struct { fields: new, .. }) => {
                self.add_fields(old, new, place.clone(), &[])
            }
            (
                Shape::Array { element: old, length: old_length },
                Shape::Array { element: new, length: new_length },
            ) => self.add_elements(old, new, *old_length.min(new_length), place),
            (
                Shape::Number { size: from, is_signed },
                Shape::Number { size: to, is_signed: is_signed_now },
            ) if is_signed == is_signed_now => self.resize(*from, *to, *is_signed, place),
            _ => Err(Mismatch::Kind { path: place.path() }),
        }
    }

    fn add_fields(
        &mut self,
        old: &[Field],
        new: &[Field],
        place: Place<'_>,
        forget: &[&str],
    ) -> Result<(), Mismatch> {
        for field in new {
            if field.name.starts_with("reserved") || forget.contains(&field.name.as_str()) {
                continue;
            }
            if let Some(before) = old.iter().find(|before| before.name == field.name) {
                self.add(&before.shape, &field.shape, &place.at(before.offset, field.offset, &field.name))?;
            }
        }
        Ok(())
    }

    fn add_elements(
        &mut self,
        old: &Shape,
        new: &Shape,
        length: usize,
        place: &Place<'_>,
    ) -> Result<(), Mismatch> {
        let (Some(old_size), Some(new_size)) = (old.size(), new.size()) else {
            return Err(Mismatch::TooLarge);
        };
        if old == new {
            return self.copy(place, new_size.checked_mul(length).ok_or(Mismatch::TooLarge)?);
        }
        if length > MAX_STEPS {
            return Err(Mismatch::TooLarge);
        }
        for index in 0..length {
            self.add(old, new, &place.shifted(index * old_size, index * new_size))?;
        }
        Ok(())
    }

    fn copy(&mut self, place: &Place<'_>, length: usize) -> Result<(), Mismatch> {
        let Place { from, to, .. } = *place;
        if let Some(Step::Copy { from: last_from, to: last_to, length: last }) = self.steps.last_mut()
            && (*last_from + *last, *last_to + *last) == (from, to)
        {
            *last += length;
            return Ok(());
        }
        self.push(Step::Copy { from, to, length })
    }

    fn resize(&mut self, from: usize, to: usize, is_signed: bool, place: &Place<'_>) -> Result<(), Mismatch> {
        if place.names.last().is_some_and(|name| name.ends_with("_be")) {
            return Err(Mismatch::Width { path: place.path() });
        }
        if [from, to].iter().any(|size| ![1, 2, 4, 8].contains(size)) {
            return Err(Mismatch::Kind { path: place.path() });
        }
        let (from, to) = (place.from..place.from + from, place.to..place.to + to);
        self.push(Step::Number { from, to, is_signed })
    }

    fn push(&mut self, step: Step) -> Result<(), Mismatch> {
        if self.steps.len() >= MAX_STEPS {
            return Err(Mismatch::TooLarge);
        }
        self.steps.push(step);
        Ok(())
    }
}

/// Where in the two layouts the comparison is.
#[derive(Debug, Clone, Default)]
struct Place<'a> {
    from: usize,
    to: usize,
    names: Vec<&'a str>,
}

impl<'a> Place<'a> {
    fn at(&self, from: usize, to: usize, name: &'a str) -> Self {
        let mut place = self.shifted(from, to);
        place.names.push(name);
        place
    }

    fn shifted(&self, from: usize, to: usize) -> Self {
        Self { from: self.from + from, to: self.to + to, names: self.names.clone() }
    }

    fn path(&self) -> String {
        self.names.join(".")
    }
}

fn read_number(bytes: &[u8], is_signed: bool) -> Option<i128> {
    Some(match (bytes.len(), is_signed) {
        (1, false) => u8::from_ne_bytes(bytes.try_into().ok()?).into(),
        (2, false) => u16::from_ne_bytes(bytes.try_into().ok()?).into(),
        (4, false) => u32::from_ne_bytes(bytes.try_into().ok()?).into(),
        (8, false) => u64::from_ne_bytes(bytes.try_into().ok()?).into(),
        (1, true) => i8::from_ne_bytes(bytes.try_into().ok()?).into(),
        (2, true) => i16::from_ne_bytes(bytes.try_into().ok()?).into(),
        (4, true) => i32::from_ne_bytes(bytes.try_into().ok()?).into(),
        (8, true) => i64::from_ne_bytes(bytes.try_into().ok()?).into(),
        _ => return None,
    })
}

/// `None` if it does not fit.
fn write_number(bytes: &mut [u8], number: i128, is_signed: bool) -> Option<()> {
    match (bytes.len(), is_signed) {
        (1, false) => bytes.copy_from_slice(&u8::try_from(number).ok()?.to_ne_bytes()),
        (2, false) => bytes.copy_from_slice(&u16::try_from(number).ok()?.to_ne_bytes()),
        (4, false) => bytes.copy_from_slice(&u32::try_from(number).ok()?.to_ne_bytes()),
        (8, false) => bytes.copy_from_slice(&u64::try_from(number).ok()?.to_ne_bytes()),
        (1, true) => bytes.copy_from_slice(&i8::try_from(number).ok()?.to_ne_bytes()),
        (2, true) => bytes.copy_from_slice(&i16::try_from(number).ok()?.to_ne_bytes()),
        (4, true) => bytes.copy_from_slice(&i32::try_from(number).ok()?.to_ne_bytes()),
        (8, true) => bytes.copy_from_slice(&i64::try_from(number).ok()?.to_ne_bytes()),
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests;
