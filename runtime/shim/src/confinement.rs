//! The last restrictions of a process: its capabilities, and its seccomp filter as the very last step before it executes.
//!
//! Input: the process and the profile of an OCI spec; effect: on the calling process, for good. Used by containers and by exec'd processes alike.
//! Of what this program does for a process, a profile has to allow nothing but the execve.

use std::path::Path;

use anyhow::{Context, Result};
use libcontainer::syscall::syscall::create_syscall;
use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxSeccomp, Process, Spec};
use rustix::thread::CapabilitySet;

use crate::seccomp::Filter;

/// What a process will be left with.
#[derive(Debug)]
pub struct Confinement {
    filter: Option<Filter>,
    capabilities: Option<LinuxCapabilities>,
}

impl Confinement {
    /// Of a process under a profile, whose compiled filter may be in the directory.
    pub fn new(
        process: &Process,
        profile: Option<&LinuxSeccomp>,
        filters: Option<&Path>,
    ) -> Result<Confinement> {
        let mut capabilities = process.capabilities().clone();
        if let (Some(capabilities), Some(_)) = (&mut capabilities, profile)
            && process.no_new_privileges() != Some(true)
        {
            permit_loading(capabilities);
        }
        Ok(Confinement {
            filter: profile.map(|profile| Filter::of(profile, filters)).transpose()?,
            capabilities,
        })
    }

    /// Takes it out of a container's spec, so that it is left to us and not to libcontainer, which compiles the profile at each start. `None` when
    /// there is no filter, or when somebody has to be told of the process's system calls, which libcontainer sees to.
    pub fn take(spec: &mut Spec, filters: Option<&Path>) -> Result<Option<Confinement>> {
        let (Some(linux), Some(process)) = (spec.linux().clone(), spec.process().clone()) else {
            return Ok(None);
        };
        let Some(profile) = linux.seccomp().as_ref() else { return Ok(None) };
        if libcontainer::seccomp::is_notify(profile) {
            return Ok(None);
        }
        let confinement = Confinement::new(&process, Some(profile), filters)?;
        let (mut linux, mut process) = (linux, process);
        linux.set_seccomp(None);
        process.set_capabilities(None);
        spec.set_linux(Some(linux)).set_process(Some(process));
        Ok(Some(confinement))
    }

    /// Leaves the process with its own capabilities, and with what loading its filter takes.
    pub fn enter(&self) -> Result<()> {
        let syscall = create_syscall();
        // Another user's id took them away.
        libcontainer::capabilities::reset_effective(syscall.as_ref()).context("raise capabilities")?;
        if let Some(capabilities) = &self.capabilities {
            libcontainer::capabilities::drop_privileges(capabilities, syscall.as_ref())
                .context("drop capabilities")?;
        }
        Ok(())
    }

    /// Loads the filter: what comes after is the execve.
    pub fn finish(&self) -> Result<()> {
        let Some(filter) = &self.filter else { return Ok(()) };
        let mut sets = rustix::thread::capabilities(None).context("read capabilities")?;
        sets.effective |= sets.permitted & CapabilitySet::SYS_ADMIN;
        rustix::thread::set_capabilities(None, sets).context("raise capabilities")?;
        filter.load()
    }
}

/// Without no_new_privs, loading a filter needs CAP_SYS_ADMIN. It stays permitted, not effective, until then; the execve ends it, since permitted
/// capabilities are made anew there, from the inheritable, ambient and bounding ones alone (capabilities(7)).
fn permit_loading(capabilities: &mut LinuxCapabilities) {
    if let Some(mut permitted) = capabilities.permitted().clone() {
        permitted.insert(Capability::SysAdmin);
        capabilities.set_permitted(Some(permitted));
    }
}
