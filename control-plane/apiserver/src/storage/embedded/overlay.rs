//! A file that is only read: what is written to it stays in memory and is gone with it.
//!
//! Lets redb repair and examine a store without changing the file. A file that a server has open is refused by the locks, which
//! are taken shared, so that several may look at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

const BLOCK: u64 = 4096;
/// Blocks that may be written, at most (64 MiB): a repair writes a few.
const MAX_BLOCKS: usize = 16 << 10;

type Block = Box<[u8; BLOCK as usize]>;

/// See the module.
#[derive(Debug)]
pub(super) struct Overlay {
    file: FileBackend,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    /// By their number.
    blocks: BTreeMap<u64, Block>,
    length: u64,
    /// How much of the file is still to be seen: it was cut there once.
    visible: u64,
}

impl Overlay {
    pub(super) fn new(file: File) -> Result<Self, DatabaseError> {
        let file = FileBackend::new(file)?;
        let length = file.len()?;
        let written = Written { blocks: BTreeMap::new(), length, visible: length };
        Ok(Overlay { file, written: Mutex::new(written) })
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block as the file has it, with zeros behind its end.
    fn original(&self, visible: u64, number: u64) -> io::Result<Block> {
        let mut block: Block = Box::new([0; BLOCK as usize]);
        let there = visible.saturating_sub(number * BLOCK).min(BLOCK);
        self.file.read(number * BLOCK, &mut block[..there as usize])?;
        Ok(block)
    }
}

/// The parts of `length` bytes from `offset` on: number of the block, first byte in it, first byte in the whole, how many.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let inside = (at % BLOCK) as usize;
        let count = (length - done).min(BLOCK as usize - inside);
        let part = (at / BLOCK, inside, done, count);
        done += count;
        (count > 0).then_some(part)
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > written.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (number, inside, done, count) in parts(offset, out.len()) {
            let part = &mut out[done..done + count];
            match written.blocks.get(&number) {
                Some(block) => part.copy_from_slice(&block[inside..inside + count]),
                None => {
                    part.copy_from_slice(&self.original(written.visible, number)?[inside..inside + count])
                }
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut written = self.written();
        written.visible = written.visible.min(length);
        written.blocks.split_off(&length.div_ceil(BLOCK));
        if let Some(block) = written.blocks.get_mut(&(length / BLOCK)) {
            block[(length % BLOCK) as usize..].fill(0);
        }
        written.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        for (number, inside, done, count) in parts(offset, data.len()) {
            if !written.blocks.contains_key(&number) {
                if written.blocks.len() >= MAX_BLOCKS {
                    return Err(io::Error::other("the repair writes more than is kept in memory"));
                }
                let block = self.original(written.visible, number)?;
                written.blocks.insert(number, block);
            }
            if let Some(block) = written.blocks.get_mut(&number) {
                block[inside..inside + count].copy_from_slice(&data[done..done + count]);
            }
        }
        written.length = written.length.max(offset + data.len() as u64);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    /// Shared, whatever is asked for: nothing is written to the file.
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}

#[cfg(test)]
mod tests;
