//! A disk in memory that forgets what was not synced, sector by sector and name by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use ropewalk::spool::{File, Storage};

use crate::chance::Choose;

const SECTOR: usize = 512;

#[derive(Debug, Clone, Default)]
struct Inode {
    /// What reading gives.
    seen: Vec<u8>,
    /// What a power cut leaves for sure.
    kept: Vec<u8>,
    /// Sectors that may or may not be kept. What is not here and differs is lost: a failed sync calls it clean.
    dirty: BTreeSet<usize>,
}

impl Inode {
    fn sector(bytes: &[u8], sector: usize) -> [u8; SECTOR] {
        let mut out = [0; SECTOR];
        let from = (sector * SECTOR).min(bytes.len());
        let to = (from + SECTOR).min(bytes.len());
        out[..to - from].copy_from_slice(&bytes[from..to]);
        out
    }

    fn keep(&mut self, sector: usize, bytes: &[u8; SECTOR]) {
        let from = sector * SECTOR;
        let to = (from + SECTOR).min(self.kept.len());
        if from < to {
            self.kept[from..to].copy_from_slice(&bytes[..to - from]);
        }
    }

    fn cut(&mut self, choose: &mut dyn Choose) {
        let dirty = std::mem::take(&mut self.dirty);
        if self.seen.len() > self.kept.len() && choose.choose(2) == 1 {
            self.kept.resize(self.seen.len(), 0);
        }
        for sector in dirty {
            let (old, new) = (Self::sector(&self.kept, sector), Self::sector(&self.seen, sector));
            if old == new || sector * SECTOR >= self.kept.len() {
                continue;
            }
            let left = match choose.choose(3) {
                0 => old,
                1 => new,
                _ => {
                    // Torn: the first half is new.
                    let mut torn = old;
                    torn[..SECTOR / 2].copy_from_slice(&new[..SECTOR / 2]);
                    torn
                }
            };
            self.keep(sector, &left);
        }
        self.seen = self.kept.clone();
    }
}

#[derive(Debug, Clone)]
enum Entry {
    Made(String, usize),
    Removed(String),
    Renamed(String, String, usize),
}

/// What goes wrong, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// From this operation on nothing is done: the power is gone.
    Off(u64),
    /// This one operation fails. A sync leaves none of it on the disk; reading still gives the new bytes.
    Fails(u64),
    /// The same, but reading gives the old bytes.
    FailsBack(u64),
}

#[derive(Debug, Default)]
pub(crate) struct World {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    kept_names: BTreeMap<String, usize>,
    entries: Vec<Entry>,
    pub(crate) operations: u64,
    pub(crate) fault: Option<Fault>,
    /// That many bytes fit in all files together.
    pub(crate) capacity: Option<usize>,
    /// Writes take at most so much at once.
    pub(crate) short: Option<usize>,
    pub(crate) refused: u64,
    pub(crate) reads: u64,
    pub(crate) syncs: u64,
    pub(crate) rewritten: u64,
    /// Something was written to a file that was opened to be read.
    pub(crate) wrote_to_old: bool,
    /// Files that were opened to be written over.
    pub(crate) reused: u64,
    locked: bool,
}

impl World {
    /// Counts an operation. `Err` when it fails.
    fn operate(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.fault {
            Some(Fault::Off(at)) if self.operations >= at => Err(io::Error::other("no power")),
            Some(Fault::Fails(at) | Fault::FailsBack(at)) if self.operations == at => Err(io::Error::other("EIO")),
            _ => Ok(()),
        }
    }

    fn used(&self) -> usize {
        self.names.values().map(|&inode| self.inodes[inode].seen.len()).sum()
    }
}

/// The disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sim(Arc<Mutex<World>>);

impl Sim {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    /// The power goes and comes back. Whoever had the disk open has it no more: this is another one.
    pub(crate) fn power_cut(&self, choose: &mut dyn Choose) -> Self {
        let old = self.world();
        let mut names = old.kept_names.clone();
        for entry in &old.entries {
            if choose.choose(2) == 1 {
                match entry {
                    Entry::Made(name, inode) => drop(names.insert(name.clone(), *inode)),
                    Entry::Removed(name) => drop(names.remove(name)),
                    Entry::Renamed(from, to, inode) => {
                        names.remove(from);
                        names.insert(to.clone(), *inode);
                    }
                }
            }
        }
        let mut inodes = old.inodes.clone();
        let there: BTreeSet<usize> = names.values().copied().collect();
        for (number, inode) in inodes.iter_mut().enumerate() {
            if there.contains(&number) {
                inode.cut(choose);
            }
        }
        let kept_names = names.clone();
        Self::of(World { inodes, names, kept_names, ..World::default() })
    }

    /// The process is gone, and the system is not.
    pub(crate) fn kill(&self) -> Self {
        let old = self.world();
        Self::of(World {
            inodes: old.inodes.clone(),
            names: old.names.clone(),
            kept_names: old.kept_names.clone(),
            entries: old.entries.clone(),
            ..World::default()
        })
    }

    /// Nobody has it open.
    pub(crate) fn is_free(&self) -> bool {
        !self.world().locked
    }

    fn of(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    /// Puts a file there, as synced.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let mut world = self.world();
        let number = world.inodes.len();
        world.inodes.push(Inode { seen: bytes.to_vec(), kept: bytes.to_vec(), dirty: BTreeSet::new() });
        world.names.insert(name.into(), number);
        world.kept_names.insert(name.into(), number);
    }

    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let world = self.world();
        world.names.iter().map(|(name, &inode)| (name.clone(), world.inodes[inode].seen.clone())).collect()
    }

    /// Changes one bit of all the bytes in all files.
    pub(crate) fn flip(&self, choose: &mut dyn Choose) -> (String, usize) {
        let mut world = self.world();
        let names: Vec<(String, usize)> = world.names.clone().into_iter().collect();
        let total: usize = names.iter().map(|(_, inode)| world.inodes[*inode].seen.len()).sum();
        let mut at = choose.choose(total);
        let bit = 1 << choose.choose(8);
        for (name, inode) in names {
            let inode = &mut world.inodes[inode];
            if let Some(byte) = inode.seen.get_mut(at) {
                *byte ^= bit;
                inode.kept[at] ^= bit;
                return (name, at);
            }
            at -= inode.seen.len();
        }
        unreachable!("it is in one of them")
    }
}

struct Lock(Sim);

impl Drop for Lock {
    fn drop(&mut self) {
        self.0.world().locked = false;
    }
}

#[derive(Debug)]
struct Handle {
    sim: Sim,
    inode: usize,
    writes: bool,
}

impl Storage for Sim {
    fn lock(&mut self) -> io::Result<Option<Box<dyn Send>>> {
        let taken = std::mem::replace(&mut self.world().locked, true);
        Ok((!taken).then(|| Box::new(Lock(self.clone())) as Box<dyn Send>))
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        let mut world = self.world();
        world.operate()?;
        Ok(world.names.keys().cloned().collect())
    }

    fn create(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        let mut world = self.world();
        world.operate()?;
        if world.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = world.inodes.len();
        world.inodes.push(Inode::default());
        world.names.insert(name.into(), inode);
        world.entries.push(Entry::Made(name.into(), inode));
        Ok(Box::new(Handle { sim: self.clone(), inode, writes: true }))
    }

    fn open(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        let mut world = self.world();
        world.operate()?;
        let inode = *world.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Handle { sim: self.clone(), inode, writes: false }))
    }

    fn reopen(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        let mut world = self.world();
        world.operate()?;
        let inode = *world.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        world.reused += 1;
        Ok(Box::new(Handle { sim: self.clone(), inode, writes: true }))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut world = self.world();
        world.operate()?;
        world.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        world.entries.push(Entry::Removed(name.into()));
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.world();
        world.operate()?;
        let inode = world.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        world.names.insert(to.into(), inode);
        world.entries.push(Entry::Renamed(from.into(), to.into(), inode));
        world.rewritten += u64::from(from.ends_with(".new"));
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        let mut world = self.world();
        world.operate()?;
        world.kept_names = world.names.clone();
        world.entries.clear();
        Ok(())
    }

    fn place(&self) -> PathBuf {
        "simulated".into()
    }
}

impl File for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.sim.world().inodes[self.inode].seen.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut world = self.sim.world();
        world.operate()?;
        world.reads += 1;
        let rest = world.inodes[self.inode].seen.get(at as usize..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let mut world = self.sim.world();
        world.operate()?;
        world.wrote_to_old |= !self.writes;
        let mut len = bytes.len().min(world.short.unwrap_or(usize::MAX));
        if let Some(capacity) = world.capacity {
            let have = world.inodes[self.inode].seen.len();
            let room = (capacity + have).saturating_sub(world.used());
            len = len.min(room.saturating_sub(at as usize));
            if len == 0 {
                world.refused += 1;
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        let inode = &mut world.inodes[self.inode];
        let (from, to) = (at as usize, at as usize + len);
        inode.seen.resize(inode.seen.len().max(to), 0);
        inode.seen[from..to].copy_from_slice(&bytes[..len]);
        inode.dirty.extend(from / SECTOR..to.div_ceil(SECTOR));
        Ok(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut world = self.sim.world();
        let result = world.operate();
        world.syncs += 1;
        let (fault, inode) = (world.fault, self.inode);
        let inode = &mut world.inodes[inode];
        if result.is_err() {
            if !matches!(fault, Some(Fault::Off(_))) {
                inode.dirty.clear();
            }
            if matches!(fault, Some(Fault::FailsBack(_))) {
                let len = inode.seen.len();
                inode.seen = inode.kept.clone();
                inode.seen.resize(len, 0);
            }
            return result;
        }
        inode.kept.resize(inode.seen.len(), 0);
        for sector in std::mem::take(&mut inode.dirty) {
            let new = Inode::sector(&inode.seen, sector);
            inode.keep(sector, &new);
        }
        Ok(())
    }
}
