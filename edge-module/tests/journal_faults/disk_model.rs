//! What a disk may hold after the power failed, from the record that `faulty_disk.c` made of all changes.
//!
//! Bytes of a file are durable when an fsync or fdatasync of that file came back after they were written; sync_file_range
//! makes nothing durable. Names are durable when the folder that they are in was synced; syncing a file does not make its
//! name durable. This is what fsync(2) promises and less than ext4 does (`POWER_CUT_MODEL=ext4`: each sync also commits all
//! changes of names so far, as a journal of metadata does).
//!
//! Of what is not durable, anything may have reached the disk:
//! - each sector of 512 bytes holds one of the versions that it had since the last sync, apart from its neighbours: writes
//!   are missing, reordered, torn;
//! - a file reaches as far as its last sector that arrived; what never arrived before it is zeros, as after delayed
//!   allocation (a length never arrives before the bytes that it covers: data=ordered);
//! - a folder has the names of one moment since its last sync, apart from other folders; a rename is never half done.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::path::Path;

use crate::random::Random;

const SECTOR_BYTES: u64 = 512;
const HEADER_BYTES: usize = 25;

type Id = usize;
const ROOT: Id = 0;

/// The record of changes, read whole.
pub(crate) struct Record {
    root: String,
    bytes: Vec<u8>,
    changes: Vec<Change>,
}

/// One change; bytes and texts lie in the record.
#[derive(Clone, Debug)]
struct Change {
    kind: u8,
    handle: u64,
    offset: u64,
    first: Range<usize>,
    second: Range<usize>,
}

impl Record {
    pub(crate) fn read(path: &Path, root: &Path) -> io::Result<Self> {
        let bytes = std::fs::read(path)?;
        let mut changes = Vec::new();
        let mut at = 0;
        while let Some(header) = bytes.get(at..at + HEADER_BYTES) {
            let number = |from: usize| {
                u64::from_le_bytes(header[from..from + 8].try_into().expect("8 bytes"))
            };
            let lengths = number(17);
            let first = at + HEADER_BYTES..at + HEADER_BYTES + (lengths & 0xFFFF_FFFF) as usize;
            let second = first.end..first.end + (lengths >> 32) as usize;
            at = second.end;
            let change =
                Change { kind: header[0], handle: number(1), offset: number(9), first, second };
            changes.push(change);
        }
        if at != bytes.len() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the record is cut"));
        }
        Ok(Self { root: root.display().to_string(), bytes, changes })
    }

    pub(crate) const fn len(&self) -> usize {
        self.changes.len()
    }

    /// The text of a mark.
    pub(crate) fn mark(&self, index: usize) -> Option<&str> {
        let change = &self.changes[index];
        (change.kind == b'A').then(|| self.text(&change.first))
    }

    /// Whether names or durability change here: where a cut is most likely to hurt.
    pub(crate) fn is_delicate(&self, index: usize) -> bool {
        let change = &self.changes[index];
        matches!(change.kind, b'S' | b'R' | b'U' | b'D' | b'M' | b'T')
            || (change.kind == b'O' && change.offset > 0)
    }

    fn text(&self, range: &Range<usize>) -> &str {
        std::str::from_utf8(&self.bytes[range.clone()]).expect("names of the test are text")
    }

    /// A path as the names below the root.
    fn names(&self, range: &Range<usize>) -> Vec<&str> {
        let path = self.text(range).strip_prefix(&self.root).expect("only the root is recorded");
        path.split('/').filter(|name| !name.is_empty()).collect()
    }
}

#[derive(Clone, Debug)]
enum Node {
    File { durable: Vec<u8>, changes: Vec<FileChange> },
    Folder { durable: BTreeMap<String, Id>, now: BTreeMap<String, Id>, changes: Vec<NameChange> },
}

#[derive(Clone, Debug)]
enum FileChange {
    Written { offset: u64, bytes: Range<usize> },
    Cut { length: u64 },
}

#[derive(Clone, Debug)]
struct NameChange {
    /// Counts all changes of names; the two halves of a rename have the same.
    time: u64,
    name: String,
    node: Option<Id>,
}

/// How much of what is not durable arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    Nothing,
    Everything,
    /// Each file and each folder up to a moment of its own.
    UpToAMoment,
    /// Sector by sector.
    Scattered,
}

impl Fate {
    pub(crate) fn random(random: &mut Random) -> Self {
        match random.of(0..10) {
            0 => Self::Nothing,
            1 => Self::Everything,
            2..=5 => Self::UpToAMoment,
            _ => Self::Scattered,
        }
    }
}

/// A disk with what it holds for sure and what it may hold.
#[derive(Clone)]
pub(crate) struct Disk {
    nodes: Vec<Node>,
    handles: HashMap<u64, Id>,
    time: u64,
    is_ext4: bool,
}

impl Disk {
    /// A disk that holds `folder` for sure.
    pub(crate) fn holding(folder: &Path) -> io::Result<Self> {
        let (nodes, handles) = (Vec::new(), HashMap::new());
        let mut disk = Self { nodes, handles, time: 0, is_ext4: is_ext4() };
        disk.load(folder)?;
        Ok(disk)
    }

    fn load(&mut self, path: &Path) -> io::Result<Id> {
        let id = self.nodes.len();
        if path.is_dir() {
            self.nodes.push(new_folder());
            let mut names = BTreeMap::new();
            for entry in std::fs::read_dir(path)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                names.insert(name, self.load(&entry.path())?);
            }
            self.nodes[id] =
                Node::Folder { durable: names.clone(), now: names, changes: Vec::new() };
        } else {
            self.nodes.push(Node::File { durable: std::fs::read(path)?, changes: Vec::new() });
        }
        Ok(id)
    }

    /// Goes through one change of the record.
    pub(crate) fn apply(&mut self, record: &Record, index: usize) {
        let change = &record.changes[index];
        match change.kind {
            b'O' => self.open(record, change),
            b'W' => {
                let written =
                    FileChange::Written { offset: change.offset, bytes: change.first.clone() };
                self.change_file(self.handles[&change.handle], written);
            }
            b'T' => {
                let cut = FileChange::Cut { length: change.offset };
                self.change_file(self.handles[&change.handle], cut);
            }
            b'S' => self.sync(record, self.handles[&change.handle]),
            b'M' => {
                let id = self.nodes.len();
                self.nodes.push(new_folder());
                self.time += 1;
                self.set_name(&record.names(&change.first), Some(id));
            }
            b'R' => {
                let (from, to) = (record.names(&change.first), record.names(&change.second));
                let id = self.find(&from).expect("what is renamed is there");
                self.time += 1;
                self.set_name(&from, None);
                self.set_name(&to, Some(id));
            }
            b'U' | b'D' => {
                self.time += 1;
                self.set_name(&record.names(&change.first), None);
            }
            b'A' => {}
            kind => panic!("no change is called {}", char::from(kind)),
        }
    }

    fn open(&mut self, record: &Record, change: &Change) {
        let names = record.names(&change.first);
        let is_created = change.offset & 1 != 0;
        let id = if is_created {
            let id = self.nodes.len();
            self.nodes.push(Node::File { durable: Vec::new(), changes: Vec::new() });
            self.time += 1;
            self.set_name(&names, Some(id));
            id
        } else {
            self.find(&names).unwrap_or_else(|| panic!("{names:?} was opened and is not there"))
        };
        if change.offset & 2 != 0 {
            self.change_file(id, FileChange::Cut { length: 0 });
        }
        self.handles.insert(change.handle, id);
    }

    fn find(&self, names: &[&str]) -> Option<Id> {
        names.iter().try_fold(ROOT, |id, name| match &self.nodes[id] {
            Node::Folder { now, .. } => now.get(*name).copied(),
            Node::File { .. } => None,
        })
    }

    fn set_name(&mut self, names: &[&str], node: Option<Id>) {
        let (name, folder) = names.split_last().expect("the root keeps its name");
        let folder = self.find(folder).expect("the folder is there");
        let Node::Folder { now, changes, .. } = &mut self.nodes[folder] else {
            panic!("{names:?} lies in a file");
        };
        match node {
            Some(id) => now.insert((*name).to_owned(), id),
            None => now.remove(*name),
        };
        changes.push(NameChange { time: self.time, name: (*name).to_owned(), node });
    }

    fn change_file(&mut self, id: Id, change: FileChange) {
        match &mut self.nodes[id] {
            Node::File { changes, .. } => changes.push(change),
            Node::Folder { .. } => panic!("a folder is written"),
        }
    }

    fn sync(&mut self, record: &Record, id: Id) {
        match &mut self.nodes[id] {
            Node::File { durable, changes } => {
                for change in changes.drain(..) {
                    match change {
                        FileChange::Cut { length } => durable.resize(length as usize, 0),
                        FileChange::Written { offset, bytes } => {
                            put(durable, offset, &record.bytes[bytes]);
                        }
                    }
                }
                if self.is_ext4 {
                    self.commit_names(self.time);
                }
            }
            Node::Folder { changes, .. } => {
                let times: Vec<u64> = changes.iter().map(|change| change.time).collect();
                self.commit_folder(id, u64::MAX);
                // The other half of a rename between folders comes along, and what was before it.
                for folder in 0..self.nodes.len() {
                    let Node::Folder { changes, .. } = &self.nodes[folder] else { continue };
                    let shared = changes.iter().map(|change| change.time);
                    if let Some(time) = shared.filter(|time| times.contains(time)).max() {
                        self.commit_folder(folder, time);
                    }
                }
                if self.is_ext4 {
                    self.commit_names(self.time);
                }
            }
        }
    }

    fn commit_names(&mut self, through: u64) {
        for folder in 0..self.nodes.len() {
            self.commit_folder(folder, through);
        }
    }

    fn commit_folder(&mut self, id: Id, through: u64) {
        let Node::Folder { durable, changes, .. } = &mut self.nodes[id] else { return };
        let count = changes.partition_point(|change| change.time <= through);
        for change in changes.drain(..count) {
            set(durable, change);
        }
    }

    /// Writes to `target` what the disk may hold if the power fails now.
    pub(crate) fn cut(
        &self,
        record: &Record,
        fate: Fate,
        random: &mut Random,
        target: &Path,
    ) -> io::Result<()> {
        let moments = self.moments(fate, random);
        self.write(record, fate, random, &moments, ROOT, target)
    }

    /// Up to when the changes of each folder arrive, so that no rename is half done.
    fn moments(&self, fate: Fate, random: &mut Random) -> Vec<u64> {
        let common = random.of(0..self.time + 2);
        let is_common = self.is_ext4 || random.is_one_in(2);
        let mut moments: Vec<u64> = self
            .nodes
            .iter()
            .map(|node| match (node, fate) {
                (Node::File { .. }, _) | (Node::Folder { .. }, Fate::Nothing) => 0,
                (Node::Folder { .. }, Fate::Everything) => u64::MAX,
                (Node::Folder { changes, .. }, Fate::UpToAMoment | Fate::Scattered) => {
                    if is_common {
                        return common;
                    }
                    let kept = random.of(0..changes.len() as u64 + 1) as usize;
                    kept.checked_sub(1).map_or(0, |last| changes[last].time)
                }
            })
            .collect();
        let mut arrived: BTreeMap<u64, Vec<Id>> = BTreeMap::new();
        for (id, node) in self.nodes.iter().enumerate() {
            let Node::Folder { changes, .. } = node else { continue };
            for change in changes {
                let folders = arrived.entry(change.time).or_default();
                if folders.last() != Some(&id) {
                    folders.push(id);
                }
            }
        }
        // Backwards: what is taken from one half is taken from the other, which concerns earlier changes only.
        for (time, folders) in arrived.into_iter().rev() {
            if folders.iter().any(|id| moments[*id] < time) {
                for id in folders {
                    moments[id] = moments[id].min(time - 1);
                }
            }
        }
        moments
    }

    fn write(
        &self,
        record: &Record,
        fate: Fate,
        random: &mut Random,
        moments: &[u64],
        id: Id,
        target: &Path,
    ) -> io::Result<()> {
        match &self.nodes[id] {
            Node::File { durable, changes } => {
                std::fs::write(target, arrived(durable, changes, record, fate, random))
            }
            Node::Folder { durable, changes, .. } => {
                std::fs::create_dir_all(target)?;
                let mut names = durable.clone();
                for change in changes.iter().filter(|change| change.time <= moments[id]) {
                    set(&mut names, change.clone());
                }
                for (name, child) in names {
                    self.write(record, fate, random, moments, child, &target.join(name))?;
                }
                Ok(())
            }
        }
    }
}

/// Whether each sync commits all changes of names so far.
pub(crate) fn is_ext4() -> bool {
    std::env::var("POWER_CUT_MODEL").is_ok_and(|model| model == "ext4")
}

const fn new_folder() -> Node {
    Node::Folder { durable: BTreeMap::new(), now: BTreeMap::new(), changes: Vec::new() }
}

fn set(names: &mut BTreeMap<String, Id>, change: NameChange) {
    match change.node {
        Some(id) => names.insert(change.name, id),
        None => names.remove(&change.name),
    };
}

fn put(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + bytes.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(bytes);
}

/// The content of a file of which only some changes arrive.
fn arrived(
    durable: &[u8],
    changes: &[FileChange],
    record: &Record,
    fate: Fate,
    random: &mut Random,
) -> Vec<u8> {
    let mut content = durable.to_vec();
    let count = changes.len();
    let taken = match fate {
        Fate::Nothing => 0,
        Fate::Everything | Fate::Scattered => count,
        Fate::UpToAMoment => random.of(0..count as u64 + 1) as usize,
    };
    let limits = match fate {
        Fate::Scattered => versions(changes, random),
        Fate::Nothing | Fate::Everything | Fate::UpToAMoment => HashMap::new(),
    };
    for (index, change) in changes[..taken].iter().enumerate() {
        match change {
            FileChange::Cut { length } => {
                if !matches!(fate, Fate::Scattered) || random.is_one_in(2) {
                    content.resize(*length as usize, 0);
                }
            }
            FileChange::Written { offset, bytes } => {
                let bytes = &record.bytes[bytes.clone()];
                for (at, part) in sectors(*offset, bytes) {
                    let limit = limits.get(&(at / SECTOR_BYTES)).copied().unwrap_or(count);
                    if index < limit {
                        put(&mut content, at, part);
                    }
                }
            }
        }
    }
    content
}

/// For each sector the change before which it was written to the disk last.
fn versions(changes: &[FileChange], random: &mut Random) -> HashMap<u64, usize> {
    let mut touched: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (index, change) in changes.iter().enumerate() {
        let FileChange::Written { offset, bytes } = change else { continue };
        let end = offset + bytes.len() as u64;
        for sector in offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            touched.entry(sector).or_default().push(index);
        }
    }
    // Most arrive, or few, or half of them.
    let bias = random.of(0..4);
    touched
        .into_iter()
        .map(|(sector, writers)| {
            let version = match random.of(0..4) < bias {
                true => writers.len(),
                false => random.of(0..writers.len() as u64 + 1) as usize,
            };
            (sector, writers.get(version).copied().unwrap_or(usize::MAX))
        })
        .collect()
}

/// Splits a write where sectors begin.
fn sectors(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut rest = bytes;
    let mut at = offset;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let room = (SECTOR_BYTES - at % SECTOR_BYTES) as usize;
        let (part, left) = rest.split_at(room.min(rest.len()));
        let start = at;
        rest = left;
        at += part.len() as u64;
        Some((start, part))
    })
}
