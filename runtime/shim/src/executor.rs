//! The last step of every container process: find the executable as its PATH says, and execute it.
//!
//! Used by libcontainer for containers and by our own exec. Errors are worded as runc words them, since people search for those words.

use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use oci_spec::runtime::Spec;

/// Executes the spec's process.
#[derive(Clone)]
pub struct ProcessExecutor;

impl Executor for ProcessExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let arguments = arguments(spec);
        let path = find(&arguments, &search_path(spec)).map_err(ExecutorError::Other)?;
        Err(ExecutorError::Other(execute(&path, &arguments)))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
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

/// Becomes the program with the process's own environment, or says why not.
pub fn execute(path: &Path, arguments: &[String]) -> String {
    attempt(path, arguments, |program, arguments| nix::unistd::execv(program, arguments))
}

/// Becomes the program with the given environment, or says why not.
pub fn execute_with(path: &Path, arguments: &[String], environment: &[String]) -> String {
    let Some(environment) = c_strings(environment) else {
        return "exec: zero byte in the environment".into();
    };
    attempt(path, arguments, |program, arguments| nix::unistd::execve(program, arguments, &environment))
}

fn attempt(
    path: &Path,
    arguments: &[String],
    execute: impl FnOnce(&CString, &[CString]) -> nix::Result<std::convert::Infallible>,
) -> String {
    let name = path.display().to_string();
    let (Ok(program), Some(arguments)) = (CString::new(name.as_bytes()), c_strings(arguments)) else {
        return format!("exec {name}: zero byte in an argument");
    };
    match execute(&program, &arguments) {
        Err(errno) => format!("exec {name}: {}", errno.desc().to_lowercase()),
    }
}

fn c_strings(texts: &[String]) -> Option<Vec<CString>> {
    texts.iter().map(|text| CString::new(text.as_bytes()).ok()).collect()
}
