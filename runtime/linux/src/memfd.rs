//! Executables in sealed memory: nobody, not even root inside a container that finds `/proc/PID/exe`, can change them (CVE-2019-5736).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::Error;

/// All seals that a finished executable carries.
const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Copies a file into a new memory file, executable and sealed.
///
/// # Errors
/// Opening, copying or sealing failed.
pub fn sealed_copy(path: &Path, name: &str) -> Result<OwnedFd, Error> {
    let mut source = File::open(path).map_err(|error| Error::new("open", path.display(), error))?;
    let memory = create(name)?;
    let mut memory = File::from(memory);
    io::copy(&mut source, &mut memory).map_err(|error| Error::new("write", name, error))?;
    rustix::fs::fchmod(&memory, rustix::fs::Mode::from_bits_truncate(0o555))
        .map_err(|errno| Error::new("fchmod", name, errno))?;
    rustix::fs::fcntl_add_seals(&memory, SEALS)
        .map_err(|errno| Error::new("fcntl F_ADD_SEALS", name, errno))?;
    Ok(memory.into())
}

fn create(name: &str) -> Result<OwnedFd, Error> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels with vm.memfd_noexec want to be told; kernels before 6.3 do not know the flag.
    match rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        other => other,
    }
    .map_err(|errno| Error::new("memfd_create", name, errno))
}

/// Whether a descriptor is a memory file that nobody can change any more.
pub fn is_sealed(fd: impl AsFd) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SEALS))
}
