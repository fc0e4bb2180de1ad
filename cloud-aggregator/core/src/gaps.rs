//! Which records of which devices are missing: what the tables hold, held against the devices' ledgers.
//!
//! A device numbers its records without holes and spreads them over topics and partitions, so no partition can tell alone
//! what is missing. The watch sees the numbers of all rows of the lake, and for each (device, generation) what the device
//! says of them: pages (these numbers were given, these of them are waveforms, everything up to here is delivered) and
//! losses (of these numbers so many will never come).
//!
//! A number is missing if a page has it, delivery has passed it, and no row does. Rows of other partitions may be on their
//! way, so it is reported only when it has been missing for the patience; then told losses are taken off, and what is left
//! is one gap, reported once. When its records come, or a loss told later explains them, it is closed, once; so it is when the watch
//! forgets its device or generation. While rows are left to be read nothing is judged: what is missing may be among them.
//!
//! What lies before a device's first page is not judged: nobody knows what it held. Bounded: see [`GapLimits`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shared_proto::model::{DeviceId, Generation};

use crate::ranges::Ranges;
use crate::time::{Micros, ProcessingTime};

/// Limits of the watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GapLimits {
    /// How long a record may be missing before it is a gap.
    pub patience: Micros,
    /// A gap whose records do not come is given up after this long.
    pub given_up_after: Micros,
    /// Devices watched; one more forgets the one not heard from longest and gives up its gaps.
    pub devices_max: usize,
    /// Generations of one device; one more forgets the oldest and gives up its gaps.
    pub generations_per_device_max: usize,
    /// Ranges of numbers held for one generation; beyond it the lowest are not judged any more.
    pub ranges_max: usize,
    /// Open gaps, and told losses, of one generation; one more gives up the oldest.
    pub gaps_per_generation_max: usize,
}

/// A page of a device's ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerPage {
    /// First number of the page.
    pub first: u64,
    /// Last number of the page.
    pub last: u64,
    /// Everything up to here is delivered or told as lost.
    pub delivered: u64,
    /// Numbers that are in no table.
    pub elsewhere: Ranges,
}

/// Numbers of which some will never come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldLoss {
    /// Lowest number concerned.
    pub first: u64,
    /// Highest number concerned.
    pub last: u64,
    /// How many of them; unknown: all that are missing.
    pub records: Option<u64>,
}

/// Why a gap is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GapClosed {
    /// All records have come.
    Received,
    /// What had not come is told as lost.
    ToldLost,
    /// The records did not come in [`GapLimits::given_up_after`], or there were too many gaps, generations or devices.
    GivenUp,
}

impl GapClosed {
    /// The word used in the tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::ToldLost => "told-lost",
            Self::GivenUp => "given-up",
        }
    }
}

/// A gap that opened (`closed` is `None`) or closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapChange {
    /// Whose records.
    pub device_id: DeviceId,
    /// Of which life of its journal.
    pub generation: Generation,
    /// Lowest number that was missing when the gap opened.
    pub first: u64,
    /// Highest.
    pub last: u64,
    /// Records that were missing when it opened.
    pub records: u64,
    /// When it opened.
    pub since: ProcessingTime,
    /// Why it is closed.
    pub closed: Option<GapClosed>,
}

impl GapChange {
    fn new(
        device_id: &DeviceId,
        generation: Generation,
        gap: &OpenGap,
        closed: Option<GapClosed>,
    ) -> Self {
        Self {
            device_id: device_id.clone(),
            generation,
            first: gap.first,
            last: gap.last,
            records: gap.records,
            since: gap.since,
            closed,
        }
    }
}

/// Sums for metrics; they stop at the end of their range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GapFigures {
    /// Devices watched.
    pub devices: usize,
    /// Gaps open.
    pub open: usize,
    /// Records missing in them.
    pub missing: u64,
    /// Records that devices have journalled and not delivered yet, by their last ledgers.
    pub owed: u64,
    /// Numbers that a page has and that were never judged, because a limit was reached.
    pub unjudged: u64,
}

/// All devices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GapWatch {
    devices: BTreeMap<DeviceId, Device>,
    unjudged: u64,
    /// Gaps of forgotten devices and generations, until the next look.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    given_up: Vec<GapChange>,
    /// Said anew each time that rows are read.
    #[serde(skip)]
    is_behind: bool,
}

/// The watch with how far it has read the tables: what a state file keeps of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedWatch {
    /// What it knows.
    pub watch: GapWatch,
    /// Last version of each table whose rows it has seen, by name.
    pub versions: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Device {
    heard: Option<ProcessingTime>,
    generations: BTreeMap<Generation, Books>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Books {
    /// Everything up to here is settled: in a row, elsewhere, lost, in an open gap, or not judged. `None`: no page yet.
    floor: Option<u64>,
    /// Numbers above the floor that a row has.
    seen: Ranges,
    /// Numbers above the floor that a page has and that belong into a table.
    expected: Ranges,
    delivered: u64,
    /// Last number of the last page.
    last: u64,
    told: Vec<ToldLoss>,
    suspect: Option<Suspect>,
    open: Vec<OpenGap>,
}

/// Something up to `through` has been missing since then.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Suspect {
    since: ProcessingTime,
    through: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct OpenGap {
    since: ProcessingTime,
    first: u64,
    last: u64,
    records: u64,
    missing: Ranges,
}

impl GapWatch {
    /// Takes numbers that rows of the lake have.
    pub fn handle_seen(
        &mut self,
        device_id: &DeviceId,
        generation: Generation,
        numbers: &Ranges,
        now: ProcessingTime,
        limits: &GapLimits,
    ) {
        let books = self.books(device_id, generation, now, limits);
        for gap in &mut books.open {
            gap.missing = gap.missing.without(numbers);
        }
        books.seen.add(numbers);
        books.seen.forget_through(books.floor.unwrap_or(0));
        let unjudged = books.limit(limits.ranges_max);
        self.unjudged = self.unjudged.saturating_add(unjudged);
    }

    /// Takes a page of a ledger. Pages of one generation come in order.
    pub fn handle_page(
        &mut self,
        device_id: &DeviceId,
        generation: Generation,
        page: &LedgerPage,
        now: ProcessingTime,
        limits: &GapLimits,
    ) {
        let books = self.books(device_id, generation, now, limits);
        if books.floor.is_none() {
            // Of what was before its first page nobody here knows what it held, unless nothing was before.
            let floor = if page.first <= 1 { 0 } else { page.last };
            books.floor = Some(floor);
            books.seen.forget_through(floor);
        }
        let given = Ranges::from_iter([(page.first, page.last)]);
        books.expected.add(&given.without(&page.elsewhere));
        books.expected.forget_through(books.floor.unwrap_or(0));
        books.last = books.last.max(page.last);
        books.delivered = books.delivered.max(page.delivered.min(page.last));
        let unjudged = books.limit(limits.ranges_max);
        self.unjudged = self.unjudged.saturating_add(unjudged);
    }

    /// Takes a loss that the device tells of.
    pub fn handle_loss(
        &mut self,
        device_id: &DeviceId,
        generation: Generation,
        loss: ToldLoss,
        now: ProcessingTime,
        limits: &GapLimits,
    ) {
        let books = self.books(device_id, generation, now, limits);
        if books.told.len() >= limits.gaps_per_generation_max.max(1) {
            books.told.remove(0);
        }
        books.told.push(loss);
    }

    /// Says whether rows are left to be read: as long as there are, nothing is judged.
    pub fn set_behind(&mut self, is_behind: bool) {
        self.is_behind = is_behind;
    }

    /// What has opened and closed by now.
    pub fn poll(&mut self, now: ProcessingTime, limits: &GapLimits) -> Vec<GapChange> {
        if self.is_behind {
            return Vec::new();
        }
        let mut changes = std::mem::take(&mut self.given_up);
        for (device_id, device) in &mut self.devices {
            for (generation, books) in &mut device.generations {
                books.poll(now, limits, &mut |gap, closed| {
                    changes.push(GapChange::new(device_id, *generation, gap, closed));
                });
            }
        }
        changes
    }

    /// Sums for metrics.
    #[must_use]
    pub fn figures(&self) -> GapFigures {
        let mut figures = GapFigures {
            devices: self.devices.len(),
            unjudged: self.unjudged,
            ..GapFigures::default()
        };
        for books in self.devices.values().flat_map(|device| device.generations.values()) {
            figures.open += books.open.len();
            let missing = books.open.iter().map(|gap| gap.missing.count());
            figures.missing = missing.fold(figures.missing, u64::saturating_add);
            let owed = books.last.saturating_sub(books.delivered);
            figures.owed = figures.owed.saturating_add(owed);
        }
        figures
    }

    /// Gaps that are open, each with what is still missing; at most `count_max`.
    #[must_use]
    pub fn open(&self, count_max: usize) -> Vec<(&DeviceId, Generation, &Ranges)> {
        let devices = self.devices.iter();
        let books = devices.flat_map(|(device, all)| {
            all.generations.iter().map(move |(generation, books)| (device, *generation, books))
        });
        let gaps = books.flat_map(|(device, generation, books)| {
            books.open.iter().map(move |gap| (device, generation, &gap.missing))
        });
        gaps.take(count_max).collect()
    }

    fn books(
        &mut self,
        device_id: &DeviceId,
        generation: Generation,
        now: ProcessingTime,
        limits: &GapLimits,
    ) -> &mut Books {
        if !self.devices.contains_key(device_id.as_str()) {
            while self.devices.len() >= limits.devices_max.max(1) {
                let silent = self.devices.iter().min_by_key(|(_, device)| device.heard);
                let Some(silent) = silent.map(|(id, _)| id.clone()) else { break };
                let forgotten = self.devices.remove(silent.as_str());
                for (generation, books) in forgotten.into_iter().flat_map(|one| one.generations) {
                    self.given_up.extend(books.given_up(&silent, generation));
                }
            }
        }
        let device = self.devices.entry(device_id.clone()).or_default();
        device.heard = Some(now);
        if !device.generations.contains_key(&generation) {
            while device.generations.len() >= limits.generations_per_device_max.max(1) {
                let Some((oldest, books)) = device.generations.pop_first() else { break };
                self.given_up.extend(books.given_up(device_id, oldest));
            }
        }
        device.generations.entry(generation).or_default()
    }
}

impl Books {
    /// What becomes of the open gaps when these books are forgotten.
    fn given_up(
        &self,
        device_id: &DeviceId,
        generation: Generation,
    ) -> impl Iterator<Item = GapChange> {
        let closed = Some(GapClosed::GivenUp);
        self.open.iter().map(move |gap| GapChange::new(device_id, generation, gap, closed))
    }

    fn poll(
        &mut self,
        now: ProcessingTime,
        limits: &GapLimits,
        tell: &mut impl FnMut(&OpenGap, Option<GapClosed>),
    ) {
        self.close_gaps(now, limits, tell);
        let Some(floor) = self.floor else { return };
        let through = self.delivered;
        let missing = self.missing(floor, through);
        let Some(first) = missing.first() else {
            self.suspect = None;
            self.settle(through.min(self.last));
            return;
        };
        self.settle(first - 1);
        let suspect = *self.suspect.get_or_insert(Suspect { since: now, through });
        if suspect.since.saturating_add(limits.patience) > now {
            return;
        }
        self.suspect = None;
        let matured = missing.within(0, suspect.through);
        let lost = self.explain(&matured);
        let unexplained = matured.without(&lost);
        if let (Some(first), Some(last)) = (unexplained.first(), unexplained.last()) {
            while self.open.len() >= limits.gaps_per_generation_max.max(1) {
                tell(&self.open.remove(0), Some(GapClosed::GivenUp));
            }
            let records = unexplained.count();
            let gap = OpenGap { since: now, first, last, records, missing: unexplained };
            tell(&gap, None);
            self.open.push(gap);
        }
        self.settle(suspect.through);
    }

    fn missing(&self, floor: u64, through: u64) -> Ranges {
        self.expected.within(floor.saturating_add(1), through).without(&self.seen)
    }

    /// The part of the missing numbers that is told as lost; it is used up.
    fn explain(&mut self, missing: &Ranges) -> Ranges {
        let mut explained = Ranges::default();
        for loss in &mut self.told {
            let concerned = missing.within(loss.first, loss.last).without(&explained);
            let taken = loss.records.map_or(concerned.clone(), |count| concerned.lowest(count));
            if let Some(left) = &mut loss.records {
                *left -= taken.count();
            }
            explained.add(&taken);
        }
        self.told.retain(|loss| loss.records != Some(0));
        explained
    }

    fn close_gaps(
        &mut self,
        now: ProcessingTime,
        limits: &GapLimits,
        tell: &mut impl FnMut(&OpenGap, Option<GapClosed>),
    ) {
        for mut gap in std::mem::take(&mut self.open) {
            let lost = self.explain(&gap.missing);
            let is_given_up = gap.since.saturating_add(limits.given_up_after) <= now;
            let closed = if gap.missing.is_empty() {
                Some(GapClosed::Received)
            } else if gap.missing.without(&lost).is_empty() {
                Some(GapClosed::ToldLost)
            } else {
                is_given_up.then_some(GapClosed::GivenUp)
            };
            gap.missing = gap.missing.without(&lost);
            match closed {
                Some(_) => tell(&gap, closed),
                None => self.open.push(gap),
            }
        }
        // What is settled and in no gap needs no explanation.
        let floor = self.floor.unwrap_or(0);
        let lowest = self.open.iter().map(|gap| gap.first).min();
        let needed = lowest.map_or(floor, |lowest| lowest.min(floor));
        self.told.retain(|loss| loss.last > needed);
    }

    /// Nothing up to `through` is asked for any more.
    fn settle(&mut self, through: u64) {
        let floor = self.floor.unwrap_or(0).max(through);
        self.floor = Some(floor);
        self.seen.forget_through(floor);
        self.expected.forget_through(floor);
    }

    /// Keeps the ranges within their limit: what is lowest is not judged any more. Gives how many missing numbers that were.
    fn limit(&mut self, ranges_max: usize) -> u64 {
        let limit = ranges_max.max(1);
        let held = self.seen.as_slice().len().max(self.expected.as_slice().len());
        if held <= limit {
            return 0;
        }
        let cut = |ranges: &Ranges| {
            let excess = ranges.as_slice().len().saturating_sub(limit / 2);
            excess.checked_sub(1).map_or(0, |place| ranges.as_slice()[place].1)
        };
        let through = cut(&self.seen).max(cut(&self.expected));
        match self.floor {
            Some(floor) => {
                let unjudged = self.missing(floor, through).count();
                self.settle(through);
                unjudged
            }
            None => {
                self.seen.forget_through(through);
                0
            }
        }
    }
}

#[cfg(test)]
mod tests;
