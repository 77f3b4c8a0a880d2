//! Pods that reach services by packets: which links have the programs for that.
//!
//! The programs are loaded for the first link that needs them: by [`Loader`], for whoever does not want others to wait for the verifier. What an earlier process put on links stays until the first sync.

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

/// Loads the programs beside a dataplane that is open: it works on meanwhile.
pub struct Loader {
    which: Packets,
    options: Options,
}

/// They are on no link yet.
pub struct Loaded {
    which: Packets,
    programs: PodPrograms,
}

impl Loader {
    pub fn load(self) -> Result<Loaded, OpenError> {
        let Self { which, options } = self;
        attach::load_packets(&options, which).map(|programs| Loaded { which, programs })
    }
}

impl Loaded {
    pub fn which(&self) -> Packets {
        self.which
    }
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

    /// None: they are loaded.
    pub fn loader(&self, options: &Options) -> Option<Loader> {
        (!self.is_loaded()).then(|| Loader { which: self.which, options: options.clone() })
    }

    /// Those that were loaded first stay: links may have them.
    pub fn put(&mut self, loaded: Loaded) {
        self.programs.get_or_insert(loaded.programs);
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
