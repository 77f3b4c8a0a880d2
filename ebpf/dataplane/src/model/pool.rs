//! Who owns which number, and which piece of the tables map. Freed ones wait until they are released.

use std::collections::BTreeMap;

/// What numbers stand for that lie close together, from 0.
#[derive(Debug)]
pub struct ByNumber<T>(Vec<Option<T>>);

impl<T> Default for ByNumber<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> ByNumber<T> {
    pub fn get(&self, number: u32) -> Option<&T> {
        self.0.get(number as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.0.get_mut(number as usize)?.as_mut()
    }

    pub fn insert(&mut self, number: u32, value: T) {
        *self.place(number) = Some(value);
    }

    pub fn get_or_insert(&mut self, number: u32, value: T) -> &mut T {
        self.place(number).get_or_insert(value)
    }

    pub fn remove(&mut self, number: u32) -> Option<T> {
        self.0.get_mut(number as usize)?.take()
    }

    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.0).filter_map(|(number, value)| value.as_ref().map(|_| number))
    }

    fn place(&mut self, number: u32) -> &mut Option<T> {
        let place = number as usize;
        if place >= self.0.len() {
            self.0.resize_with(place + 1, || None);
        }
        &mut self.0[place]
    }
}

/// Numbers below a limit, one at a time.
#[derive(Debug)]
pub struct Numbers {
    limit: u32,
    /// Every number from here on was never handed out.
    next: u32,
    free: Vec<u32>,
    cooling: Vec<u32>,
    taken: ByNumber<()>,
}

impl Numbers {
    pub fn new(limit: u32) -> Self {
        Self { limit, next: 0, free: Vec::new(), cooling: Vec::new(), taken: ByNumber::default() }
    }

    pub fn allocate(&mut self) -> Option<u32> {
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.next < self.limit => {
                self.next += 1;
                self.next - 1
            }
            None => return None,
        };
        self.taken.insert(number, ());
        Some(number)
    }

    /// Takes a number that an earlier process handed out. [`Self::settle`] follows once all of them are taken, before
    /// the first allocation.
    pub fn take(&mut self, number: u32) {
        self.taken.insert(number, ());
        self.next = self.next.max(number.saturating_add(1));
    }

    /// Finds the free numbers between those that were taken. They wait like freed ones: a program may still be using what
    /// the earlier process, or the clearing up after it, freed a moment ago.
    pub fn settle(&mut self) {
        self.cooling = (0..self.next).filter(|number| self.taken.get(*number).is_none()).collect();
    }

    pub fn is_taken(&self, number: u32) -> bool {
        self.taken.get(number).is_some()
    }

    pub fn free(&mut self, number: u32) {
        if self.taken.remove(number).is_some() {
            self.cooling.push(number);
        }
    }

    pub fn available(&self) -> u32 {
        self.limit - self.next + self.free.len() as u32
    }

    pub fn waiting(&self) -> bool {
        !self.cooling.is_empty()
    }

    pub fn release(&mut self) {
        self.free.append(&mut self.cooling);
    }
}

/// Pieces of `0..limit`, first fit, neighbours joined when they are released.
#[derive(Debug)]
pub struct Ranges {
    /// Start and length of each free piece.
    free: BTreeMap<u32, u32>,
    cooling: Vec<(u32, u32)>,
}

impl Ranges {
    pub fn new(limit: u32) -> Self {
        Self { free: BTreeMap::from([(0, limit)]), cooling: Vec::new() }
    }

    /// `None` for no room. A length of 0 needs none.
    pub fn allocate(&mut self, length: u32) -> Option<u32> {
        if length == 0 {
            return Some(0);
        }
        let (start, free) = self.free.iter().find(|(_, free)| **free >= length).map(|(s, f)| (*s, *f))?;
        self.free.remove(&start);
        if free > length {
            self.free.insert(start + length, free - length);
        }
        Some(start)
    }

    /// Takes a piece that an earlier process used; `false` if a part of it is taken already.
    pub fn take(&mut self, start: u32, length: u32) -> bool {
        if length == 0 {
            return true;
        }
        let Some((free_start, free)) = self.free.range(..=start).next_back().map(|(s, f)| (*s, *f)) else {
            return false;
        };
        let (end, free_end) = (u64::from(start) + u64::from(length), u64::from(free_start) + u64::from(free));
        if end > free_end {
            return false;
        }
        self.free.remove(&free_start);
        if start > free_start {
            self.free.insert(free_start, start - free_start);
        }
        if free_end > end {
            self.free.insert(end as u32, (free_end - end) as u32);
        }
        true
    }

    pub fn free(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.cooling.push((start, length));
        }
    }

    pub fn waiting(&self) -> bool {
        !self.cooling.is_empty()
    }

    pub fn release(&mut self) {
        for (start, length) in std::mem::take(&mut self.cooling) {
            self.give_back(start, length);
        }
    }

    /// Frees a piece that no program has seen.
    pub fn give_back(&mut self, mut start: u32, mut length: u32) {
        if length == 0 {
            return;
        }
        if let Some((before, size)) = self.free.range(..start).next_back().map(|(s, f)| (*s, *f))
            && before + size == start
        {
            self.free.remove(&before);
            start = before;
            length += size;
        }
        if let Some(size) = self.free.remove(&(start + length)) {
            length += size;
        }
        self.free.insert(start, length);
    }
}
