//! hostPath volumes: what has to be at the path, and what is made there. Removes nothing, ever.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

#[cfg(test)]
mod tests;

/// Checks the path by the volume's type, or makes what the type says.
///
/// # Errors
/// In the kubelet's words.
pub fn check(path: &Path, kind: &str) -> Result<(), String> {
    let shown = path.display();
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(format!("hostPath {shown} contains \"..\""));
    }
    match kind {
        "" => return Ok(()),
        "DirectoryOrCreate" if !path.exists() => {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
            return made.map_err(|error| format!("mkdir {shown}: {error}"));
        }
        "FileOrCreate" if !path.exists() => {
            let made = fs::File::options().write(true).create_new(true).mode(0o644).open(path);
            return match made {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(format!("create {shown}: {error}")),
            };
        }
        _ => {}
    }
    let found = fs::metadata(path).map(|metadata| metadata.file_type());
    let (fits, what) = match kind {
        "Directory" | "DirectoryOrCreate" => (found.is_ok_and(|found| found.is_dir()), "a directory"),
        "File" | "FileOrCreate" => (found.is_ok_and(|found| found.is_file()), "a file"),
        "Socket" => (found.is_ok_and(|found| found.is_socket()), "a socket file"),
        "CharDevice" => (found.is_ok_and(|found| found.is_char_device()), "a character device"),
        "BlockDevice" => (found.is_ok_and(|found| found.is_block_device()), "a block device"),
        other => return Err(format!("{other} is an invalid volume type")),
    };
    if fits { Ok(()) } else { Err(format!("hostPath type check failed: {shown} is not {what}")) }
}
