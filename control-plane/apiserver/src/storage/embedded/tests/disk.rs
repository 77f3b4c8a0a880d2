//! A disk whose power is cut: what was synced stays; of what was only written since, any sector may be there or not.
//!
//! In: redb's reads, writes, lengths and syncs, and a count of operations after which the power goes. From then on everything
//! fails. Out: the disk as it is found afterwards. A sector survives whole (512 bytes, as disks promise), each for itself: so
//! writes are dropped, kept, torn in the middle, and, since a later write may survive an earlier one, reordered.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};

use fastrand::Rng;
use redb::StorageBackend;

const SECTOR: usize = 512;

/// Whether a sync does what it promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncs {
    Kept,
    /// Says that it did and does not: no store survives this.
    Ignored,
}

/// When the power goes, once the fuse is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// In the operation that burns its last bit, whichever that is.
    Anytime,
    /// In the next sync: everything is written, nothing is safe.
    InSync,
}

/// What of the writes since the last sync survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Survival {
    Nothing,
    Everything,
    /// Everything up to a write that is torn.
    Beginning,
    /// Each write for itself, so many in eight.
    Writes(u64),
    /// Each sector for itself, so many in eight.
    Sectors(u64),
}

impl Survival {
    pub fn draw(random: &mut Rng) -> Self {
        let share = [1, 4, 7][random.usize(..3)];
        match random.u64(..5) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            2 => Survival::Beginning,
            3 => Survival::Writes(share),
            _ => Survival::Sectors(share),
        }
    }
}

#[derive(Debug)]
enum Operation {
    Write { offset: usize, data: Vec<u8> },
    Length(usize),
}

impl Operation {
    fn sectors(&self) -> usize {
        match self {
            Operation::Write { data, .. } => data.len().div_ceil(SECTOR),
            Operation::Length(_) => 1,
        }
    }

    /// Does the part of it whose sectors are `kept`. Nothing exists behind the end of the disk.
    fn apply(&self, image: &mut Vec<u8>, mut kept: impl FnMut(usize) -> bool) {
        match self {
            Operation::Length(length) if kept(0) => image.resize(*length, 0),
            Operation::Length(_) => {}
            Operation::Write { offset, data } => {
                for (number, sector) in data.chunks(SECTOR).enumerate() {
                    let start = (offset + number * SECTOR).min(image.len());
                    let end = (start + sector.len()).min(image.len());
                    if kept(number) {
                        image[start..end].copy_from_slice(&sector[..end - start]);
                    }
                }
            }
        }
    }
}

#[derive(Debug)]
struct State {
    /// What reads see.
    contents: Vec<u8>,
    /// What is certain to survive.
    synced: Vec<u8>,
    /// What came since.
    pending: Vec<Operation>,
    syncs: Syncs,
    /// Operations until the power goes.
    fuse: u64,
    moment: Moment,
    off: bool,
}

impl State {
    /// One operation; fails if the power goes during it.
    fn burn(&mut self, now: Moment) -> io::Result<()> {
        self.fuse = self.fuse.saturating_sub(1);
        self.off |= self.fuse == 0 && (self.moment == Moment::Anytime || self.moment == now);
        self.is_on()
    }

    fn is_on(&self) -> io::Result<()> {
        if self.off { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    /// The write that the power goes during is among those that may survive.
    fn add(&mut self, operation: Operation) -> io::Result<()> {
        self.is_on()?;
        operation.apply(&mut self.contents, |_| true);
        self.pending.push(operation);
        self.burn(Moment::Anytime)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    pub fn new(image: Vec<u8>, syncs: Syncs) -> Self {
        Disk(Arc::new(Mutex::new(State {
            contents: image.clone(),
            synced: image,
            pending: Vec::new(),
            syncs,
            fuse: u64::MAX,
            moment: Moment::Anytime,
            off: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Lets the power go in the `operations`-th operation from now, or in a sync after it.
    pub fn light_fuse(&self, operations: u64, moment: Moment) {
        let mut state = self.state();
        (state.fuse, state.moment) = (operations, moment);
    }

    /// What reads see.
    pub fn contents(&self) -> Vec<u8> {
        self.state().contents.clone()
    }

    pub fn is_off(&self) -> bool {
        self.state().off
    }

    /// Plugs it into a database. The receiver's channel closes when the database has let go of it.
    pub fn plug(&self) -> (Plugged, Receiver<()>) {
        let (sender, receiver) = channel();
        (Plugged { disk: self.clone(), _gone: Mutex::new(sender) }, receiver)
    }

    /// What is found when the power is back, and how many writes were not synced.
    pub fn cut(&self, survival: Survival, random: &mut Rng) -> (Vec<u8>, usize) {
        let mut state = self.state();
        state.off = true;
        let mut image = state.synced.clone();
        let sectors: usize = state.pending.iter().map(Operation::sectors).sum();
        let mut left = random.u64(..=sectors as u64);
        for operation in &state.pending {
            let whole = match survival {
                Survival::Writes(share) => random.u64(..8) < share,
                _ => survival == Survival::Everything,
            };
            operation.apply(&mut image, |_| match survival {
                Survival::Beginning => {
                    let kept = left > 0;
                    left = left.saturating_sub(1);
                    kept
                }
                Survival::Sectors(share) => random.u64(..8) < share,
                _ => whole,
            });
        }
        (image, state.pending.len())
    }
}

/// A disk in a database.
#[derive(Debug)]
pub struct Plugged {
    disk: Disk,
    _gone: Mutex<Sender<()>>,
}

impl StorageBackend for Plugged {
    fn len(&self) -> io::Result<u64> {
        let state = self.disk.state();
        state.is_on()?;
        Ok(state.contents.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.disk.state();
        state.is_on()?;
        let found = state.contents.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.disk.state().add(Operation::Length(length as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.is_on()?;
        state.burn(Moment::InSync)?;
        if state.syncs == Syncs::Kept {
            let State { synced, pending, .. } = &mut *state;
            for operation in pending.drain(..) {
                operation.apply(synced, |_| true);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let end = offset as usize + data.len();
        if end > state.contents.len() {
            return Err(io::Error::other(format!("a write to {end} of {} bytes", state.contents.len())));
        }
        state.add(Operation::Write { offset: offset as usize, data: data.to_vec() })
    }
}
