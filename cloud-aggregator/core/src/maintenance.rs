//! Decisions of the lake's upkeep: which files become one, which dates are too old, who keeps house.
//!
//! Files of one partition are merged by tiers of size, as a log-structured merge tree does: a row is written again once for
//! each tier, not once for each round. A partition whose day is over is merged as a whole.

use serde::{Deserialize, Serialize};

use crate::time::{Micros, ProcessingTime};

/// A tier spans this factor of size.
const TIER_FACTOR: u64 = 8;
/// Files below the lowest tier's bound are in it, too.
const TIERS: u32 = 4;
/// A large file is written again if what is added to it is at least this share of it: one of four.
const WORTHWHILE_SHARE: u64 = 4;

/// A file of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Its name; of two files of the same moment the lesser comes first.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written.
    pub written_at: ProcessingTime,
}

/// What to merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeLimits {
    /// Files become about this large. One of at least half of it is left alone.
    pub target_bytes: u64,
    /// So many files of a tier are waited for.
    pub files_min: usize,
    /// Most files of one merge.
    pub files_max: usize,
}

/// Groups of `files`, as their places, of which each becomes one file. No file is in two groups, each group has at least two
/// files and at most the target's bytes, and is in the order of writing. `is_settled`: see [`is_settled`].
#[must_use]
pub fn plan_merges(files: &[FileInfo], limits: &MergeLimits, is_settled: bool) -> Vec<Vec<usize>> {
    let is_small = |place: &usize| files[*place].bytes < limits.target_bytes / 2;
    let mut small: Vec<usize> = (0..files.len()).filter(is_small).collect();
    small.sort_by_key(|place| (files[*place].written_at, &files[*place].path));
    if is_settled {
        let groups = fill_groups(files, &small, limits);
        return groups.into_iter().filter_map(|group| worthwhile(files, group)).collect();
    }
    let mut groups = Vec::new();
    for tier in 0..TIERS {
        let of_tier = |place: &usize| tier_of(files[*place].bytes, limits.target_bytes) == tier;
        let members: Vec<usize> = small.iter().copied().filter(of_tier).collect();
        let mut of_tier = fill_groups(files, &members, limits);
        // What reaches the target leaves the tiers, with few files too.
        let is_due = |group: &Vec<usize>| {
            group.len() >= limits.files_min || total(files, group) >= limits.target_bytes / 2
        };
        of_tier.retain(is_due);
        groups.append(&mut of_tier);
    }
    groups
}

/// Groups of files that follow each other, each as large as the limits allow; what is left over alone is left out.
fn fill_groups(files: &[FileInfo], places: &[usize], limits: &MergeLimits) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut bytes = 0_u64;
    for &place in places {
        let more = files[place].bytes;
        match groups.last_mut() {
            Some(group)
                if group.len() < limits.files_max
                    && bytes.saturating_add(more) <= limits.target_bytes =>
            {
                bytes += more;
                group.push(place);
            }
            Some(_) | None => {
                bytes = more;
                groups.push(vec![place]);
            }
        }
    }
    groups.retain(|group| group.len() >= 2);
    groups
}

fn tier_of(bytes: u64, target_bytes: u64) -> u32 {
    let mut bound = target_bytes / 2 / TIER_FACTOR;
    let mut tier = 0;
    while tier + 1 < TIERS && bytes < bound {
        bound /= TIER_FACTOR;
        tier += 1;
    }
    tier
}

fn total(files: &[FileInfo], group: &[usize]) -> u64 {
    group.iter().map(|place| files[*place].bytes).sum()
}

/// Without the files that are so large that the others do not justify to write them again: a few late records must not do that
/// each time.
fn worthwhile(files: &[FileInfo], mut group: Vec<usize>) -> Option<Vec<usize>> {
    loop {
        let bytes = total(files, &group);
        let largest = (0..group.len()).max_by_key(|place| files[group[*place]].bytes)?;
        let bytes_of_largest = files[group[largest]].bytes;
        if group.len() < 2 {
            return None;
        }
        if (bytes - bytes_of_largest).saturating_mul(WORTHWHILE_SHARE) >= bytes_of_largest {
            return Some(group);
        }
        group.remove(largest);
    }
}

/// A day of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day {
    year: i32,
    month: u32,
    day: u32,
}

impl Day {
    /// The day of `2026-03-01`, as partitions are named; nothing if it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (rest, day) = text.rsplit_once('-')?;
        let (year, month) = rest.rsplit_once('-')?;
        let parsed =
            Self { year: year.parse().ok()?, month: month.parse().ok()?, day: day.parse().ok()? };
        ((1..=12).contains(&parsed.month) && (1..=31).contains(&parsed.day)).then_some(parsed)
    }

    /// The day in UTC of a moment.
    #[must_use]
    pub fn of(time: ProcessingTime) -> Option<Self> {
        let text = time.as_event_time().to_string();
        Self::parse(text.split_once('T')?.0)
    }
}

/// As partitions are named.
impl std::fmt::Display for Day {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

/// The first day that is kept: every row of an earlier one is older than `retention`. `None`: all are kept.
#[must_use]
pub fn first_day_kept(now: ProcessingTime, retention: Micros) -> Option<Day> {
    if retention.get() <= 0 {
        return None;
    }
    Day::of(now.saturating_add(Micros::new(retention.get().saturating_neg())))
}

/// Whether the day of a partition ended at least `settle` ago: few more files are to be expected. A partition without a day
/// never settles.
#[must_use]
pub fn is_settled(date: Option<&str>, now: ProcessingTime, settle: Micros) -> bool {
    let running = Day::of(now.saturating_add(Micros::new(settle.get().saturating_neg())));
    date.and_then(Day::parse).zip(running).is_some_and(|(day, running)| day < running)
}

/// Whether a partition goes. One whose date is missing or no date stays.
#[must_use]
pub fn is_expired(date: Option<&str>, first_kept: Day) -> bool {
    date.and_then(Day::parse).is_some_and(|day| day < first_kept)
}

/// Who keeps house, as it is written down. Each lease has a number of its own and is never changed: the highest counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Which instance.
    pub owner: String,
    /// Until when, by the owner's clock.
    pub until: ProcessingTime,
    /// When files that nothing names were last looked for.
    #[serde(default)]
    pub vacuumed_at: Option<ProcessingTime>,
}

/// Whether to try for the next lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseDecision {
    /// Write this number, unless somebody was faster.
    Write(u64),
    /// Another instance has it, until then.
    Wait(ProcessingTime),
}

/// Decides from the highest lease found. Two instances with different clocks may both take it: they are then in each other's
/// way and harm nothing. `term` bounds how long a lease of a clock that is ahead is respected.
#[must_use]
pub fn decide_lease(
    found: Option<(u64, &Lease)>,
    owner: &str,
    now: ProcessingTime,
    term: Micros,
) -> LeaseDecision {
    let Some((number, lease)) = found else { return LeaseDecision::Write(1) };
    let is_credible = lease.until <= now.saturating_add(Micros::new(term.get().saturating_mul(2)));
    if lease.owner != owner && lease.until > now && is_credible {
        return LeaseDecision::Wait(lease.until);
    }
    LeaseDecision::Write(number.saturating_add(1))
}

#[cfg(test)]
mod tests;
