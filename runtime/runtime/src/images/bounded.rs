//! A tar stream whose headers cannot be longer than headers are.
//!
//! The tar library reads what stands before a member (pax attributes, GNU long names, sparse maps) into memory, however long it claims to be.
//! [`Bounded`] is the stream below it: it counts bytes, and once [`Budget::enter`] was told of a member it gives those of its content and of what
//! stands before the next one, at most [`MAX_HEADER_BYTES`]; then the stream ends in an error. Refuses what would hide a member's length.

use std::cell::Cell;
use std::io::{self, Read};

use tar::Entry;

/// Bytes of everything that stands before one member, as Go's archive/tar has it for each of its parts.
pub const MAX_HEADER_BYTES: u64 = 1 << 20;
/// What members are padded to (POSIX ustar).
const BLOCK_BYTES: u64 = 512;

/// How much of a stream was read, and how much may be.
#[derive(Debug)]
pub struct Budget {
    read: Cell<u64>,
    end: Cell<u64>,
}

impl Budget {
    /// For a stream at its begin.
    pub fn new() -> Budget {
        Budget { read: Cell::new(0), end: Cell::new(MAX_HEADER_BYTES) }
    }

    /// The library returned a member and nothing of its content was read: it and the next one's headers may be.
    pub fn enter<R: Read>(&self, member: &mut Entry<'_, R>) -> io::Result<()> {
        let sparse = member.header().entry_type().is_gnu_sparse();
        if sparse && member.pax_extensions()?.is_some() {
            return Err(invalid("sparse file with pax attributes"));
        }
        // The size of a sparse member is that of the file with its holes.
        let size = if sparse { member.header().entry_size()? } else { member.size() };
        let padded =
            size.checked_next_multiple_of(BLOCK_BYTES).ok_or_else(|| invalid("member without an end"))?;
        self.end.set(self.read.get().saturating_add(padded).saturating_add(MAX_HEADER_BYTES));
        Ok(())
    }
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// The stream.
pub struct Bounded<'a, R> {
    inner: R,
    budget: &'a Budget,
}

impl<'a, R> Bounded<'a, R> {
    /// Puts a stream under a budget.
    pub fn new(inner: R, budget: &'a Budget) -> Self {
        Bounded { inner, budget }
    }
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.budget.end.get() - self.budget.read.get();
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 && !buffer.is_empty() {
            return Err(invalid(format!("header of more than {MAX_HEADER_BYTES} bytes")));
        }
        let count = self.inner.read(&mut buffer[..wanted])?;
        self.budget.read.set(self.budget.read.get() + count as u64);
        Ok(count)
    }
}
