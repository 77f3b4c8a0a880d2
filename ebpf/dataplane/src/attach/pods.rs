//! The programs on the links of pods: those for what NetworkPolicies select, and those for services by packets.
//!
//! They are loaded once, and put on a link when its pod needs them for the first time. Those that an earlier process put there stay, and go
//! on with our programs; the first sync takes away what is not wanted any more.

use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::TcAttachType;

use super::filters::Place;
use super::{Attached, Attachment, Classifier, LinkProgram, OpenError, filters, links};
use crate::Options;
use crate::policy::PodLink;

pub struct PodPrograms {
    programs: Vec<Classifier>,
    pins: PathBuf,
}

impl PodPrograms {
    pub(super) fn load(
        programs: &mut Ebpf,
        options: &Options,
        pins: &Path,
        table: &[LinkProgram],
    ) -> Result<Self, OpenError> {
        let load = |program: &LinkProgram| Classifier::load(&mut *programs, *program, options.uplink_hook);
        let programs = table.iter().map(load).collect::<Result<_, _>>()?;
        Ok(Self { programs, pins: pins.to_owned() })
    }

    /// Gives the links that have programs of an earlier process ours of one direction. Those of links that are gone are not among what stays.
    pub(super) fn adopt(&self, direction: TcAttachType, attached: &mut Attached) -> Result<(), OpenError> {
        let failed = |source| OpenError::File { operation: "read", path: self.pins.clone(), source };
        let programs = || self.programs.iter().filter(|classifier| classifier.program.direction == direction);
        for program in programs() {
            for link in links::interfaces(&self.pins, program.name()).map_err(failed)? {
                let pin = links::pin(&self.pins, program.name(), Some(&link));
                if let Some(index) = links::interface_of(&pin)? {
                    match program.attach(&link, index, &self.pins) {
                        Err(_) if !exists(&link) => {}
                        given => attached.insert(given?),
                    }
                }
            }
        }
        for (link, name, program) in filters::on_links(&self.pins)? {
            if let Some(classifier) = programs().find(|classifier| classifier.name() == program) {
                match classifier.attach(&name, link, &self.pins) {
                    Err(_) if !exists(&name) => {}
                    given => attached.insert(given?),
                }
            }
        }
        Ok(())
    }

    /// Makes a link run the programs.
    pub fn attach(&self, link: &PodLink) -> Result<(), OpenError> {
        self.programs.iter().try_for_each(|program| {
            program.attach(&link.name, link.index, &self.pins).map(drop::<Attachment>)
        })
    }

    /// Takes the programs off a link, which may be gone.
    pub fn detach(&self, link: &PodLink) -> Result<(), OpenError> {
        let mut by_links = true;
        for program in &self.programs {
            by_links &= links::remove(&links::pin(&self.pins, program.name(), Some(&link.name)))?;
        }
        if by_links { Ok(()) } else { filters::remove_from_one(link.index, |place| self.has(place)) }
    }

    /// Whether a filter is one of these programs.
    fn has(&self, place: &Place) -> bool {
        let known = || self.programs.iter().any(|classifier| classifier.name() == place.program);
        place.folder == self.pins && known()
    }

    /// Takes the programs off all links but the named ones. One that keeps them is no reason to leave the others; the first error is told.
    pub fn retain(&self, keep: impl Fn(&str) -> bool + Send + Sync) -> Result<(), OpenError> {
        let failed = |source| OpenError::File { operation: "read", path: self.pins.clone(), source };
        let mut result = Ok(());
        for program in &self.programs {
            for link in links::interfaces(&self.pins, program.name()).map_err(failed)? {
                if !keep(&link) {
                    let removed = links::remove(&links::pin(&self.pins, program.name(), Some(&link)));
                    result = result.and(removed.map(drop));
                }
            }
        }
        for (link, name, program) in filters::on_links(&self.pins)? {
            if !keep(&name) && self.programs.iter().any(|classifier| classifier.name() == program) {
                result = result.and(filters::remove_from_one(link, |place| self.has(place)));
            }
        }
        result
    }
}

/// Whether an earlier process put any of the programs on a link.
pub(super) fn are_attached(pins: &Path, table: &[LinkProgram]) -> Result<bool, OpenError> {
    let failed = |source| OpenError::File { operation: "read", path: pins.to_owned(), source };
    for program in table {
        if !links::interfaces(pins, program.name).map_err(failed)?.is_empty() {
            return Ok(true);
        }
    }
    let filters = filters::on_links(pins)?;
    Ok(filters.iter().any(|(_, _, found)| table.iter().any(|program| program.name == found)))
}

fn exists(link: &str) -> bool {
    Path::new("/sys/class/net").join(link).exists()
}
