//! Seccomp filters as the kernel takes them: compiled from a profile by libseccomp once, kept in a file, and loaded from there.
//!
//! Input: an OCI profile and the directory of the node's compiled filters; output: instructions, and the calling process confined by them. Compiling the
//! default profile takes libseccomp some 8 ms of CPU, more than all the rest of a container's start. A file holds the profile that it was compiled
//! from, so a name that two profiles share does no harm, and gets its name when it is whole. Refuses profiles that need a listener.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use serde::Serialize;

mod newer;
#[cfg(test)]
mod tests;

/// Compiled filters on a node; for another one, that which was not used for the longest time goes.
const MAX_FILES: usize = 64;
/// Rises when [`compile`] makes something else of a profile: a file outlives the program that wrote it.
const REVISION: u32 = 2;
/// Bytes of an instruction (`struct sock_filter`).
const INSTRUCTION_BYTES: usize = 8;
/// Longest filter that the kernel takes, in instructions (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;
/// The binary tree: the kernel looks at every system call's path through a new filter, so a short one also loads faster.
const TREE: u32 = 2;

/// A filter that is ready for the kernel.
#[derive(Debug, PartialEq, Eq)]
pub struct Filter {
    instructions: Vec<libc::sock_filter>,
    flags: u64,
}

impl Filter {
    /// The filter of a profile, from the directory when it has it.
    pub fn of(profile: &LinuxSeccomp, directory: Option<&Path>) -> Result<Filter> {
        let key = serde_json::to_vec(profile).context("write the seccomp profile")?;
        let flags = flags(profile);
        let Some(directory) = directory else {
            return Ok(Filter { instructions: instructions(&compile(profile)?)?, flags });
        };
        let path = directory.join(name(&key));
        if let Some(instructions) = kept(&path, &key) {
            return Ok(Filter { instructions, flags });
        }
        let program = compile(profile)?;
        if let Err(error) = keep(directory, &path, &key, &program) {
            // The next start compiles it again.
            eprintln!("keep a seccomp filter: {error:#}");
        }
        Ok(Filter { instructions: instructions(&program)?, flags })
    }

    /// Confines the calling process for good. Needs CAP_SYS_ADMIN or no_new_privs.
    pub fn load(&self) -> Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.instructions.len()).context("seccomp filter is too long")?,
            filter: self.instructions.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel copies `len` instructions, which `self` keeps until the call is over, and writes nothing.
        let result = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, self.flags, &raw const program)
        };
        match result {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).context("load the seccomp filter"),
        }
    }
}

/// The flags that matter for one thread and without a listener.
fn flags(profile: &LinuxSeccomp) -> u64 {
    let Some(given) = profile.flags() else {
        // As runc: before 5.16 the kernel else slows down whatever is filtered.
        return libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    };
    let flag = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync
        | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
    };
    given.iter().map(flag).fold(0, |all, one| all | one)
}

fn name(key: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    (key, REVISION, libseccomp::ScmpVersion::current().map(|version| version.to_string()).ok())
        .hash(&mut hasher);
    format!("{:016x}.bpf", hasher.finish())
}

/// A file is the profile's length, the profile, and the program. Its modification time is when it was used last.
fn kept(path: &Path, key: &[u8]) -> Option<Vec<libc::sock_filter>> {
    let mut file = File::open(path).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let (length, rest) = bytes.split_first_chunk()?;
    let (profile, program) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    if profile != key {
        return None;
    }
    let instructions = instructions(program).ok()?;
    if let Err(error) = file.set_modified(SystemTime::now()) {
        eprintln!("note the use of {}: {error}", path.display());
    }
    Some(instructions)
}

fn keep(directory: &Path, path: &Path, key: &[u8], program: &[u8]) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("make {}", directory.display()))?;
    make_room(directory).with_context(|| format!("make room in {}", directory.display()))?;
    let temporary = directory.join(format!("new-{}", std::process::id()));
    let kept = write(&temporary, &[&(key.len() as u64).to_le_bytes(), key, program])
        .and_then(|()| std::fs::rename(&temporary, path));
    if kept.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    kept.with_context(|| format!("write {}", path.display()))
}

/// Shims do this at the same time: they may see each other's removals, and one file more than allowed, which the next one makes up for. A file that is
/// removed while it is read stays readable, and one that was not renamed yet is compiled again.
fn make_room(directory: &Path) -> std::io::Result<()> {
    let entries = std::fs::read_dir(directory)?.flatten();
    let used = |entry: &std::fs::DirEntry| entry.metadata().and_then(|metadata| metadata.modified());
    let mut files: Vec<_> = entries.filter_map(|entry| Some((used(&entry).ok()?, entry.path()))).collect();
    files.sort();
    let surplus = (files.len() + 1).saturating_sub(MAX_FILES);
    for (_, path) in files.iter().take(surplus) {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn write(path: &Path, parts: &[&[u8]]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    parts.iter().try_for_each(|part| file.write_all(part))
}

fn instructions(program: &[u8]) -> Result<Vec<libc::sock_filter>> {
    let (chunks, rest) = program.as_chunks::<INSTRUCTION_BYTES>();
    if !rest.is_empty() || chunks.is_empty() || chunks.len() > MAX_INSTRUCTIONS {
        bail!("seccomp filter of {} bytes: not a program", program.len());
    }
    Ok(chunks
        .iter()
        .map(|[c0, c1, jt, jf, k @ ..]| libc::sock_filter {
            code: u16::from_ne_bytes([*c0, *c1]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes(*k),
        })
        .collect())
}

/// Translates a profile as runc does: unknown system calls and rules that say what the default says are left out, and calls that are newer than the
/// profile are not there.
fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).context("make a seccomp filter")?;
    context.set_ctl_optimize(TREE).context("make a seccomp filter")?;
    for arch in architectures(profile) {
        let arch = arch?;
        context.add_arch(arch).with_context(|| format!("add architecture {arch:?} to the seccomp filter"))?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        if action == default {
            continue;
        }
        let comparisons = comparisons(rule.args().as_deref().unwrap_or_default());
        for name in rule.names() {
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            for comparisons in &comparisons {
                context
                    .add_rule_conditional(action, call, comparisons)
                    .with_context(|| format!("add \"{name}\" to the seccomp filter"))?;
            }
        }
    }
    let memory = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)
        .context("memory for the seccomp filter")?;
    context.export_bpf(&memory).context("compile the seccomp filter")?;
    let mut program = newer::answer(profile)?;
    let mut memory = File::from(memory);
    memory.rewind()?;
    memory.read_to_end(&mut program).context("compile the seccomp filter")?;
    Ok(program)
}

fn architectures(profile: &LinuxSeccomp) -> impl Iterator<Item = Result<ScmpArch>> {
    let names = profile.architectures().iter().flatten();
    names.map(|arch| word(arch).parse().context("read the seccomp profile's architectures"))
}

/// The rules that one of the profile's becomes: several comparisons of one argument cannot be in one rule, and are alternatives then.
fn comparisons(arguments: &[LinuxSeccompArg]) -> Vec<Vec<ScmpArgCompare>> {
    let compare = |argument: &LinuxSeccompArg| {
        let index = argument.index() as u32;
        let operator = match argument.op() {
            // The mask comes first in the profile. libcontainer takes it for the other value and so allows everything.
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                let mask = ScmpCompareOp::MaskedEqual(argument.value());
                return ScmpArgCompare::new(index, mask, argument.value_two().unwrap_or(0));
            }
            LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
            LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
            LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
            LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
            LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
            LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        };
        ScmpArgCompare::new(index, operator, argument.value())
    };
    let distinct: std::collections::HashSet<_> = arguments.iter().map(LinuxSeccompArg::index).collect();
    if distinct.len() == arguments.len() {
        return vec![arguments.iter().map(compare).collect()];
    }
    arguments.iter().map(|argument| vec![compare(argument)]).collect()
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    if action == LinuxSeccompAction::ScmpActNotify {
        bail!("a seccomp profile with SCMP_ACT_NOTIFY needs a listener, which nobody is here");
    }
    let value = errno.map_or(libc::EPERM, u32::cast_signed);
    ScmpAction::from_str(&word(action), Some(value)).context("read the seccomp profile's actions")
}

/// A word of the profile as it is spelled in JSON.
fn word(value: impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
