//! Counted skips: a test that cannot run here says why, and the reason is printed at the end of the run.

use std::io::Write;

/// Records that the calling test does not run, and why. The test returns right after.
///
/// Panics when the run does not collect skips, so that no skip goes unseen.
pub fn skip(reason: &str) {
    let path = std::env::var_os("ORLOP_SKIPS").expect("a test skipped itself outside `cargo xtask test`");
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let mut file =
        std::fs::OpenOptions::new().append(true).create(true).open(path).expect("open the list of skips");
    writeln!(file, "{name}: {}", reason.replace('\n', " ")).expect("write the list of skips");
}
