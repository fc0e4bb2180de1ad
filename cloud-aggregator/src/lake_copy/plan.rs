//! Which files of a table's log are copied, and in which order: pure, on names.
//!
//! A log that goes on where the copy ends is copied commit by commit. One that was shortened meanwhile, or of which nothing is
//! there yet, begins with a log checkpoint: what lies before it is not needed. Checkpoints that sum up commits of the copy follow the commits.

use std::collections::{BTreeMap, BTreeSet};

/// Digits of a version in a name.
const DIGITS: usize = 20;
/// The hint where the newest checkpoint is.
pub const HINT: &str = "_last_checkpoint";

/// Why a log cannot be copied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing to begin with.
    #[error("its log begins with version {first} and has no whole checkpoint before it")]
    NoBeginning {
        /// The oldest commit of those that follow one another up to the newest.
        first: u64,
    },
    /// Somebody has written to the copy.
    #[error("the copy is at version {copy}, and what is copied at {source_version}")]
    Ahead {
        /// Newest version of the copy.
        copy: u64,
        /// Newest version of the source.
        source_version: u64,
    },
}

/// What is done to one log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPlan {
    /// Version at which the copy is afterwards.
    pub version: u64,
    /// Commits that go on where the copy ends, in their order.
    pub continuation: Vec<u64>,
    /// Nothing of the copy's log is gone on with: every data file has to be looked at.
    pub begins_anew: bool,
    /// All that is copied, in this order.
    pub copies: Vec<String>,
    /// What is deleted in the copy afterwards, oldest first.
    pub deletions: Vec<String>,
}

/// Files of a log that count, by version.
#[derive(Debug, Default)]
struct Log {
    commits: BTreeSet<u64>,
    /// By version and kind: names of the parts.
    checkpoints: BTreeMap<u64, BTreeSet<String>>,
    /// Files beside commits, as other programs write them (`.crc`).
    besides: BTreeMap<u64, BTreeSet<String>>,
}

/// Name of a commit's file.
#[must_use]
pub fn commit_name(version: u64) -> String {
    format!("{version:020}.json")
}

/// Whether a file of that name makes a folder the log of a table.
#[must_use]
pub fn is_of_log(name: &str) -> bool {
    let (_, kind) = parse(name).unwrap_or_default();
    kind == "json" || kind.starts_with("checkpoint.")
}

fn parse(name: &str) -> Option<(u64, &str)> {
    let (number, kind) = name.split_once('.')?;
    let is_number = number.len() == DIGITS && number.bytes().all(|byte| byte.is_ascii_digit());
    Some((number.parse().ok().filter(|_| is_number)?, kind))
}

impl Log {
    fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut log = Self::default();
        for name in names {
            let Some((version, kind)) = parse(name) else { continue };
            if kind == "json" {
                log.commits.insert(version);
            } else if kind.ends_with(".tmp") {
                // Of a commit that is on its way, or never came.
            } else if kind.starts_with("checkpoint.") {
                log.checkpoints.entry(version).or_default().insert(name.to_owned());
            } else {
                log.besides.entry(version).or_default().insert(name.to_owned());
            }
        }
        log.checkpoints.retain(|_, parts| is_whole(parts));
        log
    }

    fn newest(&self, limit: u64) -> Option<u64> {
        let commit = self.commits.range(..=limit).next_back();
        let checkpoint = self.checkpoints.range(..=limit).next_back().map(|(version, _)| version);
        commit.max(checkpoint).copied()
    }

    /// The oldest of the commits that follow one another up to `newest`; the next one if there is none.
    fn first_of_run(&self, newest: u64) -> u64 {
        let mut first = newest.saturating_add(1);
        while let Some(before) =
            first.checked_sub(1).filter(|version| self.commits.contains(version))
        {
            first = before;
        }
        first
    }

    fn names(&self) -> impl Iterator<Item = (u64, String)> {
        let commits = self.commits.iter().map(|version| (*version, commit_name(*version)));
        let others = self.checkpoints.iter().chain(&self.besides);
        let others =
            others.flat_map(|(version, names)| names.iter().map(|name| (*version, name.clone())));
        commits.chain(others)
    }
}

/// Whether one of a version's checkpoints is there with all of its parts.
fn is_whole(names: &BTreeSet<String>) -> bool {
    let mut parts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names {
        let fields: Vec<&str> = name.split('.').collect();
        match fields.as_slice() {
            // version.checkpoint.part.parts.parquet
            [_, _, _, total, _] => *parts.entry(total).or_default() += 1,
            _ => return true,
        }
    }
    parts.iter().any(|(total, count)| total.parse() == Ok(*count))
}

/// Plans the log of a table up to the version `limit`, by the names in its folder and in that of the copy. `None`: there is nothing to be
/// copied, as the table has no log.
///
/// # Errors
/// See [`PlanError`].
pub fn plan<'a>(
    source: impl IntoIterator<Item = &'a str>,
    copy: impl IntoIterator<Item = &'a str>,
    limit: u64,
) -> Result<Option<LogPlan>, PlanError> {
    let (source, copy) = (Log::new(source), Log::new(copy));
    // A pass that was cut off leaves no hole: commits are written in their order.
    let reached = copy.newest(u64::MAX);
    // A copy that has all that it is to have asks for nothing that the source may have deleted since.
    let complete = reached.filter(|reached| *reached == limit);
    let Some(newest) = source.newest(limit).max(complete) else { return Ok(None) };
    let first = source.first_of_run(newest);
    if let Some(copy) = reached.filter(|reached| *reached > newest) {
        return Err(PlanError::Ahead { copy, source_version: newest });
    }
    let next = reached.map(|reached| reached + 1).filter(|next| *next >= first);
    let begins_anew = next.is_none();
    let mut plan = LogPlan { version: newest, begins_anew, ..LogPlan::default() };
    let begin = match next {
        Some(next) => {
            plan.continuation = (next..=newest).collect();
            next
        }
        None if first == 0 => 0,
        None => {
            let checkpoint = source.checkpoints.range(first.saturating_sub(1)..=newest).next();
            let (version, parts) = checkpoint.ok_or(PlanError::NoBeginning { first })?;
            plan.copies.extend(parts.iter().cloned());
            // Some readers ask for the commit of the checkpoint, too, where it is the newest.
            if source.commits.contains(version) { *version } else { version + 1 }
        }
    };
    plan.copies.extend((begin..=newest).map(commit_name));
    plan.add_others(&source, &copy);
    plan.delete_what_is_gone(&source, &copy);
    Ok(Some(plan))
}

impl LogPlan {
    /// Checkpoints and other files of versions that the copy has then.
    fn add_others(&mut self, source: &Log, copy: &Log) {
        let present: BTreeSet<String> = copy.names().map(|(_, name)| name).collect();
        let copied: BTreeSet<String> = self.copies.iter().cloned().collect();
        let others = source.checkpoints.iter().chain(&source.besides);
        let others = others.filter(|(version, _)| **version <= self.version);
        let names = others.flat_map(|(_, names)| names);
        let missing = names.filter(|name| !present.contains(*name) && !copied.contains(*name));
        self.copies.extend(missing.cloned());
    }

    /// What the source has deleted from its log because a checkpoint has it.
    fn delete_what_is_gone(&mut self, source: &Log, copy: &Log) {
        let oldest = source.checkpoints.range(..=self.version).next();
        let Some((checkpoint, _)) = oldest else { return };
        let present: BTreeSet<String> = source.names().map(|(_, name)| name).collect();
        let mut gone: Vec<(u64, String)> = copy
            .names()
            .filter(|(version, name)| version < checkpoint && !present.contains(name))
            .collect();
        gone.sort();
        self.deletions = gone.into_iter().map(|(_, name)| name).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(version: u64) -> String {
        format!("{version:020}.checkpoint.parquet")
    }

    fn commits(versions: std::ops::RangeInclusive<u64>) -> Vec<String> {
        versions.map(commit_name).collect()
    }

    fn planned(
        source: &[String],
        copy: &[String],
        limit: u64,
    ) -> Result<Option<LogPlan>, PlanError> {
        plan(source.iter().map(String::as_str), copy.iter().map(String::as_str), limit)
    }

    #[test]
    fn a_log_from_its_beginning_is_copied_in_order_and_checkpoints_after_their_commits() {
        let mut source = commits(0..=4);
        source.extend([checkpoint(3), HINT.to_owned(), "_commit_1.json.tmp".to_owned()]);
        let all = planned(&source, &[], u64::MAX).expect("planned").expect("a log");
        assert_eq!(all.version, 4);
        assert_eq!(all.copies, [commits(0..=4), vec![checkpoint(3)]].concat());
        assert!(all.begins_anew && all.continuation.is_empty() && all.deletions.is_empty());
        // Cut off in the middle, it goes on behind what is there.
        let rest = planned(&source, &commits(0..=1), u64::MAX).expect("planned").expect("a log");
        assert_eq!((rest.begins_anew, &rest.continuation[..]), (false, &[2, 3, 4][..]));
        assert_eq!(rest.copies, [commits(2..=4), vec![checkpoint(3)]].concat());
        let done = [commits(0..=4), vec![checkpoint(3)]].concat();
        let none = planned(&source, &done, u64::MAX).expect("planned").expect("a log");
        assert_eq!((none.copies.len(), none.version, none.begins_anew), (0, 4, false));
        // A checkpoint alone has no data of its own.
        let alone = planned(&source, &commits(0..=4), u64::MAX).expect("planned").expect("a log");
        assert_eq!((alone.begins_anew, alone.copies), (false, vec![checkpoint(3)]));
        // Nothing behind the version at which the table was moved, also of the checkpoints.
        let moved = planned(&source, &commits(0..=1), 2).expect("planned").expect("a log");
        assert_eq!((moved.version, moved.copies), (2, commits(2..=2)));
        let later = [commits(7..=9), vec![checkpoint(8)]].concat();
        let moved = planned(&later, &commits(0..=2), 2).expect("planned").expect("a log");
        assert_eq!((moved.version, moved.copies.len(), moved.begins_anew), (2, 0, false));
    }

    #[test]
    fn a_log_that_was_shortened_begins_with_a_checkpoint_and_what_lies_before_goes() {
        let source = [commits(8..=12), vec![checkpoint(9), checkpoint(11)]].concat();
        let begun = planned(&source, &[], u64::MAX).expect("planned").expect("a log");
        let expected = [vec![checkpoint(9)], commits(9..=12), vec![checkpoint(11)]].concat();
        assert_eq!((begun.copies, begun.begins_anew), (expected.clone(), true));
        // The same where the copy is too far behind.
        let old = [commits(0..=5), vec![checkpoint(4)]].concat();
        let jumped = planned(&source, &old, u64::MAX).expect("planned").expect("a log");
        assert_eq!(jumped.copies, expected);
        assert_eq!(
            jumped.deletions,
            [commits(0..=3), vec![checkpoint(4)], commits(4..=5)].concat()
        );
        // One that is not: it goes on, and is shortened, too.
        let near = commits(3..=9);
        let went_on = planned(&source, &near, u64::MAX).expect("planned").expect("a log");
        assert_eq!(went_on.continuation, [10, 11, 12]);
        let expected = [commits(10..=12), vec![checkpoint(9), checkpoint(11)]].concat();
        assert_eq!((went_on.copies, went_on.deletions), (expected, commits(3..=7)));
        // The commit of the checkpoint is gone as well.
        let source = [vec![checkpoint(9)], commits(10..=11)].concat();
        let begun = planned(&source, &[], u64::MAX).expect("planned").expect("a log");
        assert_eq!(begun.copies, source);
    }

    #[test]
    fn holes_parts_and_copies_that_are_ahead_are_told() {
        let none = planned(&commits(3..=5), &[], u64::MAX);
        assert_eq!(none, Err(PlanError::NoBeginning { first: 3 }));
        let ahead = planned(&commits(0..=5), &commits(0..=6), u64::MAX);
        assert_eq!(ahead, Err(PlanError::Ahead { copy: 6, source_version: 5 }));
        assert_eq!(planned(&[HINT.to_owned()], &[], u64::MAX), Ok(None));
        // A listing in which a commit is not to be seen yet is no hole: what lies before it is not used.
        let part = |number: u64| format!("{:020}.checkpoint.{number:010}.0000000002.parquet", 4);
        let mut source = [commits(0..=2), commits(4..=6), vec![part(1)]].concat();
        assert_eq!(planned(&source, &[], 6), Err(PlanError::NoBeginning { first: 4 }));
        source.push(part(2));
        let begun = planned(&source, &[], 6).expect("planned").expect("a log");
        assert_eq!(begun.copies, [vec![part(1), part(2)], commits(4..=6)].concat());
        assert!(is_of_log(&part(1)) && is_of_log(&commit_name(7)));
        assert!(!is_of_log("1.json") && !is_of_log(HINT) && !is_of_log("0000000001-0000002a.json"));
    }
}
