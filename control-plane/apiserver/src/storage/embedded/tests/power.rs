//! The power is cut, again and again, while writers commit through the whole store: queue, groups, commit, sink, answers.
//!
//! After each cut: the store opens and is sound; what was acknowledged or given to the sink is there, at its revision; a
//! transaction nobody heard of is there whole or not at all; the store goes on from there. Cuts come during recovery and
//! closing too. The seed decides on the load, the moment and what survives; which transactions share a commit is up to the
//! scheduler. `ORLOP_POWER_SEED=N` runs the one seed that a failure names.

use std::collections::{BTreeMap, HashMap};

use fastrand::Rng;

use super::disk::{Disk, Moment, Survival, Syncs};
use super::*;
use crate::storage::embedded::check::examine;

/// Stores that are begun, and how often the power of each is cut.
const STORES: u64 = 16;
const CUTS: u64 = 16;
const WRITERS: u64 = 6;
/// Keys that a writer has for itself.
const KEYS: u64 = 8;
/// Transactions of a writer between two cuts, at most.
const TRANSACTIONS: u64 = 40;
const MAX_WRITES: u64 = 4;
/// More than a group can have, so that what is unknown after a cut is in the history.
const HISTORY: usize = 60;
/// The power goes within so many operations of the disk, 2 to the power of it.
const FUSE_BITS: std::ops::Range<u64> = 2..11;

type Violation = String;

/// What the world knows of a store.
#[derive(Default)]
struct World {
    /// Every change that somebody was told of; revision N is at N - 1.
    told: Vec<Change>,
    /// Transactions that may or may not have happened, by their number.
    uncertain: HashMap<u64, Vec<Write>>,
    transactions: u64,
}

/// What the cuts came to.
#[derive(Debug, Default)]
struct Tally {
    cuts: u64,
    changes: usize,
    /// Cuts that interrupted the repair after the one before.
    in_recovery: u64,
    /// Cuts with unsynced writes, by what survived.
    unsynced: BTreeMap<Survival, u64>,
    /// Transactions that nobody was told of and that were there.
    unheard: usize,
}

/// The number of the transaction that a write belongs to.
fn transaction_of(write: &Write) -> u64 {
    let (Write::Put { value, .. } | Write::Delete { last: value, .. }) = write;
    let text = std::str::from_utf8(value).unwrap();
    text.split(':').next().unwrap().parse().unwrap()
}

/// A value, for the check of the whole file: it begins with a number, and its length follows.
fn audit(_: &Key, value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok();
    let padding = text.and_then(|text| {
        let mut parts = text.split(':');
        parts.next()?.parse::<u64>().ok()?;
        Some((parts.next()?.parse::<usize>().ok()?, parts.next()?.len()))
    });
    (padding.is_none_or(|(said, found)| said != found)).then(|| "not a value that was written".to_owned())
}

fn value(transaction: u64, random: &mut Rng) -> Bytes {
    let length = match random.u64(..16) {
        0 => random.u64(..40_000),
        _ => random.u64(..700),
    } as usize;
    format!("{transaction}:{length}:{}", "x".repeat(length)).into()
}

/// Live keys after the first `revision` changes.
fn live(changes: &[Change]) -> BTreeMap<Key, &Change> {
    let mut live = BTreeMap::new();
    for change in changes {
        match &change.write {
            Write::Put { key, .. } => live.insert(key.clone(), change),
            Write::Delete { key, .. } => live.remove(key),
        };
    }
    live
}

impl World {
    /// Compares what was loaded with what is known; gives the changes that nobody was told of.
    fn unheard(&self, loaded: &Loaded) -> Result<Vec<Change>, Violation> {
        let told = self.told.len() as Revision;
        if loaded.revision < told {
            return Err(format!(
                "the store is back at revision {}, {told} was acknowledged",
                loaded.revision
            ));
        }
        let found: Vec<Revision> = loaded.history.iter().map(|change| change.revision).collect();
        if found != (loaded.compacted + 1..=loaded.revision).collect::<Vec<_>>() || loaded.compacted > told {
            return Err(format!("history from {} to {}: {found:?}", loaded.compacted, loaded.revision));
        }
        let (old, new): (Vec<&Change>, Vec<&Change>) =
            loaded.history.iter().partition(|change| change.revision <= told);
        for change in old {
            if *change != self.told[change.revision as usize - 1] {
                return Err(format!("revision {} is another change than the one told", change.revision));
            }
        }
        let base = live(&self.told[..loaded.compacted as usize]);
        let same = |(one, (key, other)): (&Change, (&Key, &&Change))| one.write.key() == key && one == *other;
        let mut sorted: Vec<Change> = loaded.base.clone();
        sorted.sort_by(|a, b| a.write.key().cmp(b.write.key()));
        if sorted.len() != base.len() || !sorted.iter().zip(&base).all(same) {
            return Err(format!("the state at revision {} is not what it was", loaded.compacted));
        }
        self.are_whole(&new)?;
        Ok(new.into_iter().cloned().collect())
    }

    fn are_whole(&self, mut changes: &[&Change]) -> Result<(), Violation> {
        while let Some(first) = changes.first() {
            let number = transaction_of(&first.write);
            let Some(writes) = self.uncertain.get(&number) else {
                return Err(format!("revision {}: transaction {number} was never begun", first.revision));
            };
            let found: Vec<&Write> = changes.iter().take(writes.len()).map(|change| &change.write).collect();
            if found != writes.iter().collect::<Vec<_>>() {
                return Err(format!("revision {}: a part of transaction {number} only", first.revision));
            }
            changes = &changes[writes.len()..];
        }
        Ok(())
    }

    /// The store is served: what it holds is what the world is told.
    fn adopt(&mut self, unheard: Vec<Change>) {
        self.told.extend(unheard);
        self.uncertain.clear();
    }
}

/// Transactions that were begun: their number, writes, and the revision if they were acknowledged.
type Begun = Vec<(u64, Vec<Write>, Option<Revision>)>;

/// One writer: its keys are its own, so it knows at which revision each is.
struct WriterClient<'a> {
    store: &'a EmbeddedStore,
    number: u64,
    random: Rng,
    live: HashMap<Key, Revision>,
    begun: Begun,
}

impl WriterClient<'_> {
    async fn run(mut self, first: u64) -> Result<Begun, Violation> {
        for transaction in first..first + self.random.u64(..TRANSACTIONS) {
            let transaction_number = transaction * WRITERS + self.number;
            let (compares, writes) = self.draw(transaction_number);
            let answer = commit(self.store, compares, writes.clone()).await;
            self.begun.push((transaction_number, writes.clone(), answer.as_ref().ok().copied()));
            match answer {
                Ok(last) => self.note(&writes, last),
                Err(StorageError::Conflict { key }) => {
                    return Err(format!(
                        "transaction {transaction_number}: key {:?} is not where it was",
                        key.0
                    ));
                }
                Err(StorageError::Commit { .. } | StorageError::Closed) => break,
            }
        }
        Ok(self.begun)
    }

    fn draw(&mut self, transaction: u64) -> (Vec<Compare>, Vec<Write>) {
        let first = self.random.u64(..KEYS);
        let numbers = (first..first + 1 + self.random.u64(..MAX_WRITES)).map(|number| number % KEYS);
        let (mut compares, mut writes) = (Vec::new(), Vec::new());
        for number in numbers {
            let key = Key::new("things", &self.number.to_string(), &number.to_string());
            let revision = self.live.get(&key).copied();
            let value = value(transaction, &mut self.random);
            let delete = revision.is_some() && self.random.u64(..4) == 0;
            let expect = revision.map_or(Expect::Absent, Expect::At);
            compares.push(Compare { key: key.clone(), expect });
            writes.push(if delete { Write::Delete { key, last: value } } else { Write::Put { key, value } });
        }
        (compares, writes)
    }

    fn note(&mut self, writes: &[Write], last: Revision) {
        for (revision, write) in (last + 1 - writes.len() as Revision..).zip(writes) {
            match write {
                Write::Put { key, .. } => self.live.insert(key.clone(), revision),
                Write::Delete { key, .. } => self.live.remove(key),
            };
        }
    }
}

/// Serves the store on `disk` to its writers until they are done or the power goes, and closes it.
fn serve(disk: &Disk, world: &mut World, random: &mut Rng, tally: &mut Tally) -> Result<(), Violation> {
    let (plugged, gone) = disk.plug();
    let mut opened = match open_on(plugged, Path::new("disk"), HISTORY) {
        Ok(opened) => opened,
        Err(_) if disk.is_off() => {
            tally.in_recovery += 1;
            return Ok(());
        }
        Err(error) => return Err(format!("{error}: {:?}", std::error::Error::source(&error))),
    };
    let unheard = world.unheard(&std::mem::take(&mut opened.loaded))?;
    tally.unheard += unheard.len();
    world.adopt(unheard);
    let seen: Arc<Mutex<Vec<Change>>> = Arc::default();
    let sink = seen.clone();
    let store =
        opened.start(Box::new(move |changes| sink.lock().unwrap().extend_from_slice(changes))).unwrap();
    let begun = write(&store, world, random);
    drop(store);
    // Ends when the writer thread has closed the disk; nothing is ever sent.
    let _ = gone.recv();
    world.told.append(&mut seen.lock().unwrap());
    for (number, writes, acknowledged) in begun? {
        let Some(last) = acknowledged else {
            world.uncertain.insert(number, writes);
            continue;
        };
        let first = last as usize - writes.len();
        let told = world.told.get(first..last as usize).unwrap_or_default();
        if !told.iter().map(|change| &change.write).eq(&writes) {
            return Err(format!("transaction {number} was acknowledged at {last} before the sink had it"));
        }
    }
    // The sink may have had what nobody answered for any more.
    let told: Vec<u64> = world.told.iter().map(|change| transaction_of(&change.write)).collect();
    told.iter().for_each(|number| drop(world.uncertain.remove(number)));
    Ok(())
}

fn write(store: &EmbeddedStore, world: &mut World, random: &mut Rng) -> Result<Begun, Violation> {
    let live = live(&world.told);
    let first = world.transactions;
    world.transactions += TRANSACTIONS;
    let writers = (0..WRITERS).map(|number| {
        let own = live.iter().filter(|(key, _)| key.parts().1 == number.to_string());
        let live = own.map(|(key, change)| (key.clone(), change.revision)).collect();
        let random = random.fork();
        WriterClient { store, number, random, live, begun: Vec::new() }.run(first)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let begun = runtime.block_on(futures::future::join_all(writers));
    Ok(begun.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// One store, from its making on.
fn cut_again_and_again(seed: u64, syncs: Syncs, tally: &mut Tally) -> Result<(), Violation> {
    let mut random = Rng::with_seed(seed);
    let mut world = World::default();
    let new = Disk::new(Vec::new(), syncs);
    let (plugged, gone) = new.plug();
    let database = builder().create_with_backend(plugged).unwrap();
    create_tables(&database).unwrap();
    drop(database);
    let _ = gone.recv();
    // A new store is synced before it gets its name.
    let mut image = new.contents();
    for _ in 0..CUTS {
        let disk = Disk::new(image, syncs);
        let bits = random.u64(FUSE_BITS);
        let moment = [Moment::Anytime, Moment::InSync][random.usize(..2)];
        disk.light_fuse(random.u64(1..=1 << bits), moment);
        serve(&disk, &mut world, &mut random, tally)?;
        let survival = Survival::draw(&mut random);
        let unsynced;
        (image, unsynced) = disk.cut(survival, &mut random);
        tally.cuts += 1;
        if unsynced > 0 {
            *tally.unsynced.entry(survival).or_default() += 1;
        }
        let (plugged, _) = Disk::new(image.clone(), Syncs::Kept).plug();
        let sound = examine(plugged, Path::new("disk"), audit);
        let report = sound.map_err(|error| format!("after {survival:?} of {unsynced} writes: {error}"))?;
        let told = world.told.len() as Revision;
        if report.revision < told {
            return Err(format!(
                "after {survival:?} of {unsynced} writes: back at revision {}, {told} was acknowledged",
                report.revision
            ));
        }
    }
    tally.changes += world.told.len();
    Ok(())
}

fn seeds() -> Vec<u64> {
    match std::env::var("ORLOP_POWER_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..STORES).collect(),
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_a_power_cut() {
    let mut tally = Tally::default();
    for seed in seeds() {
        if let Err(violation) = cut_again_and_again(seed, Syncs::Kept, &mut tally) {
            panic!("seed {seed}, cut {}: {violation}", tally.cuts % CUTS);
        }
    }
    println!("{tally:?}");
    if seeds().len() > 1 {
        assert!(tally.cuts >= 200 && tally.changes >= 2000, "{tally:?}");
        assert!(tally.in_recovery >= 5 && tally.unheard >= 5, "{tally:?}");
        let kinds: u64 = tally.unsynced.values().sum();
        assert!(tally.unsynced.len() == 9 && kinds >= 100, "{tally:?}");
    }
}

#[test]
fn a_disk_that_does_not_sync_is_found_out() {
    for seed in seeds() {
        cut_again_and_again(seed, Syncs::Ignored, &mut Tally::default()).unwrap_err();
    }
}
