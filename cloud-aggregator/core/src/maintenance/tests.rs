use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const MEBIBYTE: u64 = 1 << 20;
const LIMITS: MergeLimits =
    MergeLimits { target_bytes: 128 * MEBIBYTE, files_min: 8, files_max: 64 };

fn at(seconds: i64) -> ProcessingTime {
    ProcessingTime::from_micros(seconds * 1_000_000)
}

/// Files of these sizes, one a second.
fn files(sizes: &[u64]) -> Vec<FileInfo> {
    let file = |(place, bytes): (usize, &u64)| FileInfo {
        path: format!("part-{place:05}"),
        bytes: *bytes,
        written_at: at(place as i64),
    };
    sizes.iter().enumerate().map(file).collect()
}

#[test]
fn a_tier_is_merged_when_it_has_enough_files_and_large_files_are_left_alone() {
    let check = |sizes: &[u64], expected: &[Vec<usize>]| {
        assert_eq!(plan_merges(&files(sizes), &LIMITS, false), expected, "{sizes:?}");
    };
    check(&[], &[]);
    check(&[1000; 7], &[]);
    check(&[1000; 8], &[(0..8).collect()]);
    // Seven of a tier and one of another.
    check(&[1000, 1000, 1000, 1000, 1000, 1000, 1000, 2 * MEBIBYTE], &[]);
    check(&[64 * MEBIBYTE; 9], &[]);
    // Two reach the target together.
    check(&[63 * MEBIBYTE; 3], &[vec![0, 1]]);
    let many = plan_merges(&files(&[1000; 150]), &LIMITS, false);
    assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [64, 64, 22]);
}

#[test]
fn a_settled_partition_is_merged_as_a_whole_unless_that_rewrites_much_for_little() {
    let check = |sizes: &[u64], expected: &[Vec<usize>]| {
        assert_eq!(plan_merges(&files(sizes), &LIMITS, true), expected, "{sizes:?}");
    };
    check(&[1000, 2 * MEBIBYTE, MEBIBYTE], &[vec![0, 1, 2]]);
    check(&[1000], &[]);
    check(&[40 * MEBIBYTE, 1000], &[]);
    check(&[40 * MEBIBYTE, 1000, 1000], &[vec![1, 2]]);
    check(&[40 * MEBIBYTE, 10 * MEBIBYTE], &[vec![0, 1]]);
    check(&[70 * MEBIBYTE, 40 * MEBIBYTE, 60 * MEBIBYTE, 30 * MEBIBYTE], &[vec![1, 2]]);
}

#[test]
fn files_are_merged_in_the_order_of_writing() {
    let mut shuffled = files(&[1000; 8]);
    shuffled.reverse();
    assert_eq!(plan_merges(&shuffled, &LIMITS, false), [(0..8).rev().collect::<Vec<_>>()]);
}

#[test]
fn whole_days_expire() {
    // 2026-03-01T08:15:30Z.
    let now = at(1_772_352_930);
    let day = |text: &str| Day::parse(text).expect("a day");
    let kept = |days: i64| first_day_kept(now, Micros::from_seconds(days * 86_400));
    assert_eq!(kept(0), None);
    assert_eq!(kept(1), Some(day("2026-02-28")));
    assert_eq!(kept(400), Some(day("2025-01-25")));
    assert_eq!(kept(1).map(|day| day.to_string()).as_deref(), Some("2026-02-28"));
    for (date, expected) in [
        (Some("2026-02-27"), true),
        (Some("2026-02-28"), false),
        (Some("0999-12-31"), true),
        (Some("10000-01-01"), false),
        (Some("-0001-01-01"), true),
        (Some("__HIVE_DEFAULT_PARTITION__"), false),
        (Some("2026-13-01"), false),
        (None, false),
    ] {
        assert_eq!(is_expired(date, day("2026-02-28")), expected, "{date:?}");
    }
}

#[test]
fn a_day_settles_when_it_has_been_over_for_a_while() {
    // 2026-03-01T08:15:30Z.
    let now = at(1_772_352_930);
    let check = |date: Option<&str>, hours: i64, expected: bool| {
        assert_eq!(is_settled(date, now, Micros::from_seconds(hours * 3600)), expected, "{date:?}");
    };
    check(Some("2026-03-01"), 0, false);
    check(Some("2026-02-28"), 8, true);
    check(Some("2026-02-28"), 9, false);
    check(Some("2026-02-27"), 9, true);
    check(Some("2026-03-02"), 1, false);
    check(None, 1, false);
}

#[test]
fn a_lease_is_respected_until_it_ends_and_no_longer_than_a_clock_can_be_believed() {
    let term = Micros::from_seconds(300);
    let lease = |until: i64| Lease { owner: "a".to_owned(), until: at(until), vacuumed_at: None };
    let decide = |found: Option<&Lease>, owner: &str, now: i64| {
        decide_lease(found.map(|lease| (7, lease)), owner, at(now), term)
    };
    assert_eq!(decide(None, "b", 0), LeaseDecision::Write(1));
    assert_eq!(decide(Some(&lease(100)), "b", 99), LeaseDecision::Wait(at(100)));
    assert_eq!(decide(Some(&lease(100)), "b", 100), LeaseDecision::Write(8));
    assert_eq!(decide(Some(&lease(100)), "a", 50), LeaseDecision::Write(8));
    assert_eq!(decide(Some(&lease(700)), "b", 100), LeaseDecision::Wait(at(700)));
    assert_eq!(decide(Some(&lease(701)), "b", 100), LeaseDecision::Write(8));
}

proptest! {
    /// Merging as planned, again and again, keeps every row once, and comes to an end with few small files.
    #[test]
    fn every_row_is_kept_once_and_merging_ends(
        sizes in prop::collection::vec(1_u64..100 * MEBIBYTE, 0..200),
        tiny in prop::collection::vec(1_u64..10_000, 0..400),
        files_min in 2_usize..12,
        files_max in 12_usize..100,
        settled in any::<bool>(),
    ) {
        let limits = MergeLimits { files_min, files_max, ..LIMITS };
        let sizes: Vec<u64> = sizes.into_iter().chain(tiny).collect();
        let mut lake: Vec<(FileInfo, Vec<usize>)> =
            files(&sizes).into_iter().enumerate().map(|(row, file)| (file, vec![row])).collect();
        let all: u64 = sizes.iter().sum();
        let mut rounds = 0;
        loop {
            let infos: Vec<FileInfo> = lake.iter().map(|(file, _)| file.clone()).collect();
            let plan = plan_merges(&infos, &limits, settled);
            let merged: Vec<usize> = plan.iter().flatten().copied().collect();
            let gone: BTreeSet<usize> = merged.iter().copied().collect();
            prop_assert_eq!(gone.len(), merged.len(), "no file is merged twice");
            if plan.is_empty() {
                break;
            }
            let mut outputs = Vec::new();
            for (number, group) in plan.iter().enumerate() {
                prop_assert!(group.len() >= 2 && group.len() <= files_max);
                let bytes = total(&infos, group);
                prop_assert!(bytes <= limits.target_bytes);
                let rows = group.iter().flat_map(|place| lake[*place].1.clone()).collect();
                let written_at = infos[*group.last().expect("two files")].written_at;
                let path = format!("merged-{rounds:05}-{number:05}");
                outputs.push((FileInfo { path, bytes, written_at }, rows));
            }
            let mut place = 0;
            lake.retain(|_| { place += 1; !gone.contains(&(place - 1)) });
            lake.extend(outputs);
            rounds += 1;
            prop_assert!(rounds <= sizes.len(), "each round leaves fewer files");
        }
        let mut rows: Vec<usize> = lake.iter().flat_map(|(_, rows)| rows.clone()).collect();
        rows.sort_unstable();
        prop_assert_eq!(rows, (0..sizes.len()).collect::<Vec<_>>());
        let small = lake.iter().filter(|(file, _)| file.bytes < limits.target_bytes / 2).count();
        // Of each tier fewer than are waited for; of a full group, files each of which is four times as large as the rest.
        let full = (all / (limits.target_bytes / 4)) as usize + sizes.len() / files_max;
        let left = files_min * TIERS as usize + (full + 1) * 14;
        prop_assert!(small <= left, "{} small files", small);
    }
}
