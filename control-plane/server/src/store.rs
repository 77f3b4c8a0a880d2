//! `orlop-server store check FILE`: whether a store that no server has open is sound.
//!
//! Input: a file. Output: what is in it, or an error that names what is wrong. Only reads. A running server's store is not
//! looked at here: `orlopctl store backup` asks the server for a copy, which can be.

use std::path::Path;

use apiserver::object;
use apiserver::storage::embedded::check::{self, Report};

pub fn check(file: &Path) -> anyhow::Result<()> {
    let report = check::check(file, object::audit)?;
    print!("{}", describe(file, &report));
    Ok(())
}

fn describe(file: &Path, report: &Report) -> String {
    let Report { revision, compacted, keys, records, obsolete, closed } = report;
    let end = if *closed { "closed" } else { "not closed; the next start repairs that" };
    format!(
        "{file}: sound\nrevision  {revision}, history from {compacted}\nobjects   {keys}\nrecords   {records}, of which \
         {obsolete} are to be removed\nend       {end}\n",
        file = file.display(),
    )
}
