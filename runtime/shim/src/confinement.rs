//! The last restrictions of a process: its capabilities and its seccomp filter, in the order in which the privileges for each are still there.
//!
//! Input: the process and the profile of an OCI spec; effect: on the calling process, for good. Used by containers and by exec'd processes alike.

use std::path::Path;

use anyhow::{Context, Result};
use libcontainer::syscall::syscall::create_syscall;
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Process, Spec};

use crate::seccomp::Filter;

/// What a process will be left with.
#[derive(Debug)]
pub struct Confinement {
    filter: Option<Filter>,
    capabilities: Option<LinuxCapabilities>,
    no_new_privileges: bool,
}

impl Confinement {
    /// Of a process under a profile, whose compiled filter may be in the directory.
    pub fn new(
        process: &Process,
        profile: Option<&LinuxSeccomp>,
        filters: Option<&Path>,
    ) -> Result<Confinement> {
        Ok(Confinement {
            filter: profile.map(|profile| Filter::of(profile, filters)).transpose()?,
            capabilities: process.capabilities().clone(),
            no_new_privileges: process.no_new_privileges() == Some(true),
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

    /// Leaves the process with its own capabilities. Without no_new_privs loading a filter needs CAP_SYS_ADMIN, so it comes before.
    pub fn enter(&self) -> Result<()> {
        let syscall = create_syscall();
        // Another user's id took them away.
        libcontainer::capabilities::reset_effective(syscall.as_ref()).context("raise capabilities")?;
        if !self.no_new_privileges {
            self.load()?;
        }
        if let Some(capabilities) = &self.capabilities {
            libcontainer::capabilities::drop_privileges(capabilities, syscall.as_ref())
                .context("drop capabilities")?;
        }
        Ok(())
    }

    /// The last step: with no_new_privs the filter comes here and need not allow our own calls.
    pub fn finish(&self) -> Result<()> {
        if self.no_new_privileges { self.load() } else { Ok(()) }
    }

    fn load(&self) -> Result<()> {
        self.filter.as_ref().map_or(Ok(()), Filter::load)
    }
}
