//! The `bpf` calls that look at maps of layouts that this build does not know, and move what they hold.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

use super::{BATCH, BPF_MAP_LOOKUP_BATCH, BPF_OBJ_GET_INFO_BY_FD, InfoByFd, LookupBatch, bpf};

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_BTF_GET_FD_BY_ID: libc::c_int = 19;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;

/// Type information of a map, at most.
const MAX_TYPES: usize = 1 << 20;

/// What the kernel, or an object, says of a map.
#[derive(Debug, Clone, Copy)]
pub struct MapInfo {
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub capacity: u32,
    pub flags: u32,
    /// The number of its type information; 0: none, or an object's own.
    pub types: u32,
    pub key_type: u32,
    pub value_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct RawMapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    capacity: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    vmlinux_value_type: u32,
    namespace: [u64; 2],
    types: u32,
    key_type: u32,
    value_type: u32,
    vmlinux_types: u32,
    extra: u64,
}

#[repr(C)]
#[derive(Default)]
struct TypesInfo {
    bytes: u64,
    size: u32,
    id: u32,
    name: u64,
    name_size: u32,
    of_kernel: u32,
}

#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = RawMapInfo::default();
    let length = size_of::<RawMapInfo>() as u32;
    let fd = map.as_raw_fd() as u32;
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut InfoByFd { fd, length, info: (&raw mut info) as u64 })?;
    let RawMapInfo { kind, key_size, value_size, capacity, flags, types, key_type, value_type, .. } = info;
    Ok(MapInfo { kind, key_size, value_size, capacity, flags, types, key_type, value_type })
}

/// Type information by its number.
pub fn types(id: u32) -> io::Result<Vec<u8>> {
    let fd = bpf(BPF_BTF_GET_FD_BY_ID, &mut [id, 0, 0, 0])?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    let object = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut bytes = Vec::new();
    // The first call tells the size.
    for _ in 0..2 {
        let mut info =
            TypesInfo { bytes: bytes.as_mut_ptr() as u64, size: bytes.len() as u32, ..TypesInfo::default() };
        let (fd, length) = (object.as_raw_fd() as u32, size_of::<TypesInfo>() as u32);
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut InfoByFd { fd, length, info: (&raw mut info) as u64 })?;
        if info.size as usize > MAX_TYPES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        bytes.resize(info.size as usize, 0);
    }
    Ok(bytes)
}

/// A map, and how large its keys and values are.
#[derive(Debug)]
pub struct Elements {
    map: OwnedFd,
    key: usize,
    value: usize,
    capacity: usize,
}

impl Elements {
    pub fn of(map: OwnedFd) -> io::Result<Self> {
        let info = map_info(map.as_fd())?;
        let [key, value, capacity] =
            [info.key_size, info.value_size, info.capacity].map(|size| size as usize);
        Ok(Self { map, key, value, capacity })
    }

    /// Shows every element; what comes or goes meanwhile may be among them or not.
    pub fn read(&self, mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        let (mut keys, mut values) = (vec![0; BATCH * self.key], vec![0; BATCH * self.value]);
        // A bucket's number, or a key.
        let mut position = vec![0_u8; self.key.max(size_of::<u32>())];
        let mut next = position.clone();
        let mut has_begun = false;
        loop {
            let mut attributes = LookupBatch {
                position: if has_begun { position.as_ptr() as u64 } else { 0 },
                next_position: next.as_mut_ptr() as u64,
                ..self.batch(&mut keys, &mut values, BATCH)
            };
            let read = bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes);
            let has_ended = match read {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                read => read.map(|_| false)?,
            };
            let elements = keys.chunks_exact(self.key).zip(values.chunks_exact(self.value));
            for (key, value) in elements.take(attributes.count as usize) {
                each(key, value)?;
            }
            if has_ended {
                return Ok(());
            }
            position.copy_from_slice(&next);
            has_begun = true;
        }
    }

    /// Writes elements, whether they are there already or not.
    pub fn write(&self, keys: &mut Vec<u8>, values: &mut Vec<u8>) -> io::Result<()> {
        let count = keys.len() / self.key;
        if (count * self.key, count * self.value) != (keys.len(), values.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if count > 0 {
            bpf(BPF_MAP_UPDATE_BATCH, &mut self.batch(keys, values, count))?;
        }
        keys.clear();
        values.clear();
        Ok(())
    }

    /// `None`: there is none.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value];
        let mut element = self.element(key, value.as_mut_ptr() as u64, 0)?;
        match bpf(BPF_MAP_LOOKUP_ELEM, &mut element) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            found => found.map(|_| Some(value)),
        }
    }

    /// Writes an element that is not there; whether it was not.
    pub fn add(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        self.update(key, value, BPF_NOEXIST, libc::EEXIST)
    }

    /// Writes an element that is there; whether it was.
    pub fn replace(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        self.update(key, value, BPF_EXIST, libc::ENOENT)
    }

    /// `false`: what `flags` ask for is not so, which `unmet` tells.
    fn update(&self, key: &[u8], value: &[u8], flags: u64, unmet: libc::c_int) -> io::Result<bool> {
        if value.len() != self.value {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match bpf(BPF_MAP_UPDATE_ELEM, &mut self.element(key, value.as_ptr() as u64, flags)?) {
            Err(error) if error.raw_os_error() == Some(unmet) => Ok(false),
            updated => updated.map(|_| true),
        }
    }

    fn element(&self, key: &[u8], value: u64, flags: u64) -> io::Result<Element> {
        if key.len() != self.key {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let map = self.map.as_raw_fd() as u32;
        Ok(Element { map, padding: 0, key: key.as_ptr() as u64, value, flags })
    }

    /// An array's elements as programs see them. Refused for an array that was not made for that.
    pub fn share(&self) -> io::Result<Shared<'_>> {
        let stride = self.value.next_multiple_of(size_of::<u64>());
        let length = self.capacity.checked_mul(stride).ok_or(io::ErrorKind::FileTooLarge)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at a place of the kernel's choice; the map is an array of at least this length, or the call fails.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, &self.map, 0)
        };
        let base = NonNull::new(base?.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Shared { base, length, stride, value: self.value, _map: PhantomData })
    }

    /// Whether so many elements make a batch.
    pub fn is_batch(&self, keys: &[u8]) -> bool {
        keys.len() >= BATCH * self.key
    }

    fn batch(&self, keys: &mut [u8], values: &mut [u8], count: usize) -> LookupBatch {
        LookupBatch {
            position: 0,
            next_position: 0,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: count as u32,
            map: self.map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        }
    }
}

/// An array in our memory, which programs change at any time.
pub struct Shared<'a> {
    base: NonNull<u8>,
    length: usize,
    stride: usize,
    value: usize,
    _map: PhantomData<&'a Elements>,
}

impl Shared<'_> {
    /// Adds to a number of 4 or 8 bytes, at its place in an element's value. Nothing that a program adds meanwhile is lost.
    pub fn add(&self, index: u32, place: &Range<usize>, change: u64) -> io::Result<()> {
        let element = (index as usize).checked_mul(self.stride).filter(|at| *at < self.length);
        let (Some(element), true) = (element, place.end <= self.value) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: inside the mapping, which is there as long as we are: the element is, and the place is inside its value.
        let word = unsafe { self.base.as_ptr().add(element + place.start) };
        match place.len() {
            4 if place.start.is_multiple_of(4) => {
                // SAFETY: aligned, as elements are at multiples of 8 bytes; programs and we only add to it.
                unsafe { AtomicU32::from_ptr(word.cast()) }.fetch_add(change as u32, Ordering::Relaxed);
            }
            8 if place.start.is_multiple_of(8) => {
                // SAFETY: as above.
                unsafe { AtomicU64::from_ptr(word.cast()) }.fetch_add(change, Ordering::Relaxed);
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(())
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `share` made, which nobody else has.
        let _stays = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
    }
}
