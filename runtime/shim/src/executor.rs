//! The last step of every container process: find the executable as its PATH says, and execute it.
//!
//! Used by libcontainer for containers and by our own exec. Errors are worded as runc words them, since people search for those words.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::Spec;

use crate::confinement::Confinement;

#[cfg(test)]
mod tests;

/// Confines itself where that was not left to libcontainer, and executes the spec's process.
#[derive(Clone)]
pub struct ProcessExecutor {
    confinement: Option<Rc<Confinement>>,
    /// Whose home directory is to be found, when the environment has none.
    homeless: Option<u32>,
}

impl ProcessExecutor {
    /// Takes over from libcontainer what it must not do. It asks the C library for the home directory, which asks the image's own libraries: not in a
    /// process that is not confined yet.
    pub fn take_over(spec: &mut Spec, filters: Option<&Path>) -> anyhow::Result<ProcessExecutor> {
        let confinement = Confinement::take(spec, filters)?.map(Rc::new);
        let mut homeless = None;
        if let Some(mut process) = spec.process().clone() {
            let mut environment = process.env().clone().unwrap_or_default();
            if !has_home(&environment) {
                environment.retain(|entry| entry != "HOME=");
                environment.push("HOME=/".into());
                homeless = Some(process.user().uid());
                process.set_env(Some(environment));
                spec.set_process(Some(process));
            }
        }
        Ok(ProcessExecutor { confinement, homeless })
    }
}

impl Executor for ProcessExecutor {
    /// Called in the container, after [`Executor::validate`].
    fn setup_envs(&self, mut environment: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        if let Some(user) = self.homeless {
            environment.insert("HOME".into(), home(user));
        }
        // SAFETY: the process has one thread.
        unsafe {
            std::env::vars_os().for_each(|(name, _)| std::env::remove_var(name));
            environment.iter().for_each(|(name, value)| std::env::set_var(name, value));
        }
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let arguments = arguments(spec);
        let path = find(&arguments, &search_path(spec)).map_err(ExecutorError::Other)?;
        let environment =
            std::env::vars_os().map(|(name, value)| [name, "=".into(), value].join(OsStr::new("")));
        let program = Program::new(path, arguments, environment).map_err(ExecutorError::Other)?;
        Err(ExecutorError::Other(program.execute(self.confinement.as_deref())))
    }

    /// Called once, by the container's process, when all that needs privileges is done.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        if let Some(confinement) = &self.confinement {
            let failed = |error| ExecutorValidationError::ArgValidationError(format!("{error:#}"));
            confinement.enter().map_err(failed)?;
        }
        find(&arguments(spec), &search_path(spec))
            .map(|_| ())
            .map_err(ExecutorValidationError::ArgValidationError)
    }
}

fn arguments(spec: &Spec) -> Vec<String> {
    spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default()
}

fn search_path(spec: &Spec) -> String {
    let environment = spec.process().as_ref().and_then(|process| process.env().clone()).unwrap_or_default();
    environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default().to_owned()
}

/// Whether an environment says where its home is.
pub fn has_home(environment: &[String]) -> bool {
    environment
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("HOME="))
        .is_some_and(|home| !home.is_empty())
}

/// As runc: the home directory comes from the image's passwd, or is `/`.
pub fn home(user: u32) -> String {
    let text = passwd().unwrap_or_default();
    let entry = linux::passwd::entries(&text).find(|entry| entry.uid == user);
    entry.map(|entry| entry.home).filter(|home| !home.is_empty()).unwrap_or("/").to_owned()
}

/// The image's file, which may be anything: opened without waiting.
fn passwd() -> std::io::Result<String> {
    let mut options = std::fs::File::options();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open("/etc/passwd")?;
    if file.metadata()?.is_file() { linux::passwd::read(file) } else { Ok(String::new()) }
}

/// The file that the first argument stands for in the process's own root.
pub fn find(arguments: &[String], search_path: &str) -> Result<PathBuf, String> {
    let Some(name) = arguments.first().filter(|name| !name.is_empty()) else {
        return Err("exec: \"\": no command given".into());
    };
    if name.contains('/') {
        let path = PathBuf::from(name);
        return check(&path).map(|()| path).map_err(|reason| format!("exec: \"{name}\": {reason}"));
    }
    let mut denied = None;
    for directory in search_path.split(':') {
        let path = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(reason) if reason == PERMISSION_DENIED => denied = Some(reason),
            Err(_) => {}
        }
    }
    let reason = denied.unwrap_or_else(|| "executable file not found in $PATH".into());
    Err(format!("exec: \"{name}\": {reason}"))
}

const PERMISSION_DENIED: &str = "permission denied";

fn check(path: &Path) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err("is a directory".into()),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => Err(PERMISSION_DENIED.into()),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(format!("stat {}: no such file or directory", path.display()))
        }
        Err(error) => Err(format!("stat {}: {error}", path.display())),
    }
}

/// A program with its arguments and environment as the kernel takes them: nothing is left to be done but the execve.
pub struct Program {
    path: PathBuf,
    file: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// Says why not, when a text has a zero byte.
    pub fn new(
        path: PathBuf,
        arguments: Vec<String>,
        environment: impl Iterator<Item = OsString>,
    ) -> Result<Program, String> {
        let file = CString::new(path.as_os_str().as_bytes());
        let (Ok(file), Some(arguments)) = (file, c_strings(arguments.into_iter().map(Into::into))) else {
            return Err(format!("exec {}: zero byte in an argument", path.display()));
        };
        let environment = c_strings(environment).ok_or("exec: zero byte in the environment")?;
        Ok(Program { path, file, arguments, environment })
    }

    /// Becomes the program, as the last step of a confinement, or says why not.
    pub fn execute(&self, confinement: Option<&Confinement>) -> String {
        let (arguments, environment) = (pointers(&self.arguments), pointers(&self.environment));
        if let Some(Err(error)) = confinement.map(Confinement::finish) {
            return format!("{error:#}");
        }
        // SAFETY: the strings, and both lists of them, which end with a null, are kept by `self` and this function until the call is over.
        unsafe { libc::execve(self.file.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        format!("exec {}: {}", self.path.display(), nix::errno::Errno::last().desc().to_lowercase())
    }
}

fn c_strings(texts: impl Iterator<Item = OsString>) -> Option<Vec<CString>> {
    texts.map(|text| CString::new(text.into_vec()).ok()).collect()
}

fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}
