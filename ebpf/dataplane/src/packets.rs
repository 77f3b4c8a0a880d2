//! Pods that reach services by packets: which links have the programs for that.
//!
//! The programs are loaded for the first link that needs them. What an earlier process put on links stays until the first sync.

use std::collections::BTreeSet;

use crate::attach::{self, Packets, PodPrograms};
use crate::policy::PodLink;
use crate::{OpenError, Options};

pub struct Served {
    which: Packets,
    /// None: not loaded, and on no link.
    programs: Option<PodPrograms>,
    /// The names of those that this process serves.
    links: BTreeSet<String>,
}

impl Served {
    /// `found`: what is on links that an earlier process served.
    pub fn new(which: Packets, found: Option<PodPrograms>) -> Self {
        Self { which, programs: found, links: BTreeSet::new() }
    }

    /// Whether a link may have the programs.
    pub fn is_loaded(&self) -> bool {
        self.programs.is_some()
    }

    pub fn serve(&mut self, link: &PodLink, options: &Options) -> Result<(), OpenError> {
        let programs = match self.programs.take() {
            Some(programs) => programs,
            None => attach::load_packets(options, self.which)?,
        };
        let programs = self.programs.insert(programs);
        if let Err(error) = programs.attach(link) {
            // What is led without its answers being translated is worse than nothing. The first error says why.
            let _second = programs.detach(link);
            return Err(error);
        }
        self.links.insert(link.name.clone());
        Ok(())
    }

    /// A link that is gone is fine.
    pub fn end(&mut self, link: &PodLink) -> Result<(), OpenError> {
        self.links.remove(&link.name);
        self.programs.as_ref().map_or(Ok(()), |programs| programs.detach(link))
    }

    /// Ends it for all links that this process does not serve.
    pub fn retain(&mut self) -> Result<(), OpenError> {
        let Some(programs) = &self.programs else { return Ok(()) };
        programs.retain(|name| self.links.contains(name))?;
        if self.links.is_empty() {
            self.programs = None;
        }
        Ok(())
    }
}
