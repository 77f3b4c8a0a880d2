//! An array map in our own memory: reading and writing an element costs no system call.

#![expect(unsafe_code, reason = "memory shared with the kernel")]

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::MapData;
use rustix::mm::{MapFlags, ProtFlags};

use super::MapError;

/// A mapped array of values of `SIZE` bytes. The kernel keeps each element at a multiple of 8 bytes.
#[derive(Debug)]
pub struct MappedArray<const SIZE: usize> {
    base: NonNull<u8>,
    elements: usize,
    /// Keeps the map's descriptor open.
    _map: MapData,
}

// SAFETY: the mapping belongs to the process, not to a thread, and every write takes `&mut self`.
unsafe impl<const SIZE: usize> Send for MappedArray<SIZE> {}

impl<const SIZE: usize> MappedArray<SIZE> {
    const STRIDE: usize = SIZE.next_multiple_of(8);

    pub fn map(map: MapData, elements: usize) -> Result<Self, MapError> {
        let length = elements * Self::STRIDE;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at a place of the kernel's choice; the map is an array of at least this length, or the call fails.
        let mapped = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, map.fd().as_fd(), 0)
        };
        let base = mapped.map_err(|errno| MapError::System {
            operation: format!("map {elements} array elements into memory"),
            source: errno.into(),
        })?;
        let base = NonNull::new(base.cast()).expect("mmap gives no null pointer");
        Ok(Self { base, elements, _map: map })
    }

    pub fn read(&self, index: u32) -> [u8; SIZE] {
        // SAFETY: `element` is inside the mapping; only this process writes it, through `&mut self`.
        unsafe { self.element(index).cast::<[u8; SIZE]>().read_volatile() }
    }

    /// One aligned word of an element, which programs may be changing.
    pub fn load_word(&self, index: u32, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= SIZE, "a word inside the element");
        // SAFETY: as in `store_word`.
        let word_at = unsafe { AtomicU64::from_ptr(self.element(index).add(offset).cast()) };
        word_at.load(Ordering::Relaxed)
    }

    /// Writes an element that no program reads yet.
    pub fn write(&mut self, index: u32, value: [u8; SIZE]) {
        // SAFETY: as in `read`.
        unsafe { self.element(index).cast::<[u8; SIZE]>().write_volatile(value) };
    }

    /// Stores one aligned word of an element that programs may be reading: they see the old or the new one. Everything
    /// written before is visible to whoever sees it.
    pub fn store_word(&mut self, index: u32, offset: usize, word: u64) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= SIZE, "a word inside the element");
        // SAFETY: inside the mapping and aligned: the base is a page, the stride and the offset are multiples of 8.
        let word_at = unsafe { AtomicU64::from_ptr(self.element(index).add(offset).cast()) };
        word_at.store(word, Ordering::Release);
    }

    /// As [`Self::store_word`], for half a word.
    pub fn store_number(&mut self, index: u32, offset: usize, number: u32) {
        assert!(offset.is_multiple_of(4) && offset + 4 <= SIZE, "a number inside the element");
        // SAFETY: inside the mapping and aligned: the base is a page, the stride a multiple of 8, the offset one of 4.
        let number_at = unsafe { AtomicU32::from_ptr(self.element(index).add(offset).cast()) };
        number_at.store(number, Ordering::Release);
    }

    fn element(&self, index: u32) -> *mut u8 {
        let index = index as usize;
        assert!(index < self.elements, "element {index} of an array of {}", self.elements);
        // SAFETY: the index was checked, so the result is inside the mapping.
        unsafe { self.base.as_ptr().add(index * Self::STRIDE) }
    }
}

impl<const SIZE: usize> Drop for MappedArray<SIZE> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of exactly this length, and no reference into it is left.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.elements * Self::STRIDE) };
        debug_assert!(unmapped.is_ok());
    }
}
