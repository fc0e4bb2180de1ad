//! What the journal costs: `cargo bench -p edge-module --bench journal`.
//!
//! Writing in bursts beside the plain engine, latency at a steady rate, memory with a backlog, start, reading and trimming.
//! `BENCH_SHARE` (1.0) scales the number of records, `BENCH_FOLDER` says on which disk.
#![expect(clippy::print_stdout, reason = "a benchmark is read by a person")]

use std::error::Error;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use edge_module::store::{Entry, Journal, JournalSettings, Lane, PlainJournal, SegmentedJournal};
use shared_proto::model::{EventTime, Sequence};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// As in `config/default.toml`, with a cap that the backlog does not reach.
const SETTINGS: JournalSettings = JournalSettings {
    segment_bytes: 8 << 20,
    bytes_max: 64 << 30,
    free_bytes_min: 256 << 20,
    cache_bytes: 8 << 20,
};
const NOW: EventTime = EventTime::from_micros(1_700_000_000_000_000);
const PAYLOAD_BYTES: usize = 100;
const RUNS: usize = 5;
const ENGINES: [&str; 2] = ["sled", "plain"];
const GROUP: u64 = 4_096;
const STEADY_RATE: f64 = 10_000.0;
const STEADY_TIME: Duration = Duration::from_secs(10);
const TICKS_PER_SECOND: f64 = 100.0;
/// Set in a child process: what it does.
const ROLE: &str = "JOURNAL_BENCH_ROLE";
const FOLDER: &str = "JOURNAL_BENCH_FOLDER";

fn main() -> Outcome {
    if let Ok(role) = std::env::var(ROLE) {
        return child(&role, &PathBuf::from(std::env::var(FOLDER)?));
    }
    let processors = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.unwrap_or("unknown").trim_start_matches([' ', '\t', ':']);
    let count = std::thread::available_parallelism()?;
    println!("processor: {count} x {model}");
    println!("profile: {}", if cfg!(debug_assertions) { "dev" } else { "release" });
    println!("load: {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    let parent = std::env::var_os("BENCH_FOLDER")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    std::fs::create_dir_all(&parent)?;
    println!("folder: {}, share {}", parent.display(), share());
    burst(&parent)?;
    for name in ENGINES {
        latency(&parent, name)?;
    }
    start(&parent)?;
    backlog(&parent)
}

fn share() -> f64 {
    std::env::var("BENCH_SHARE").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0)
}

fn scaled(count: f64) -> u64 {
    (count * share()).max(1.0) as u64
}

fn group(count: u64) -> Vec<Entry> {
    (0..count).map(|number| (Lane::Readings, payload(number))).collect()
}

/// Bytes that differ from record to record.
fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes().to_vec();
    payload.resize(PAYLOAD_BYTES, b'.');
    payload
}

/// Seconds of both cores that this process has used.
fn cpu_seconds() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(") ").ok_or("/proc/self/stat")?.1;
    let ticks: u64 =
        fields.split(' ').skip(11).take(2).filter_map(|it| it.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn folder(parent: &Path) -> Outcome<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("journal-bench-").tempdir_in(parent)?)
}

fn open(folder: &Path) -> Outcome<SegmentedJournal> {
    Ok(SegmentedJournal::open(folder, SETTINGS, NOW)?)
}

fn burst(parent: &Path) -> Outcome {
    for size in [256, 512, GROUP] {
        for name in ENGINES {
            let (mut rates, mut costs) = (Vec::new(), Vec::new());
            let mut disk = 0;
            let groups = (scaled(1e6) / size).max(1);
            for _ in 0..RUNS {
                let folder = folder(parent)?;
                let mut journal = open_engine(name, folder.path())?;
                let records = group(size);
                let (cpu, started) = (cpu_seconds()?, Instant::now());
                for _ in 0..groups {
                    journal.append(&records)?;
                }
                let written = (groups * size) as f64;
                rates.push(written / started.elapsed().as_secs_f64());
                costs.push((cpu_seconds()? - cpu) * 1e6 / written);
                disk = journal.bytes() / (groups * size);
            }
            println!(
                "burst, {name}, groups of {size}: {:.0} records/s, {:.2} CPU seconds per million, {disk} bytes on disk each (median of {RUNS} runs, {} records)",
                median(&mut rates),
                median(&mut costs),
                groups * size
            );
        }
    }
    Ok(())
}

fn open_engine(name: &str, folder: &Path) -> Outcome<Box<dyn Journal>> {
    Ok(match name {
        "sled" => Box::new(open(folder)?),
        _ => Box::new(PlainJournal::open(folder, SETTINGS, NOW)?),
    })
}

fn latency(parent: &Path, name: &str) -> Outcome {
    let folder = folder(parent)?;
    let mut journal = open_engine(name, folder.path())?;
    let mut latencies: Vec<f64> = Vec::new();
    let started = Instant::now();
    while started.elapsed() < STEADY_TIME {
        let due = (started.elapsed().as_secs_f64() * STEADY_RATE) as usize;
        let records = group((due - latencies.len()).min(4_096) as u64);
        if records.is_empty() {
            std::thread::sleep(Duration::from_micros(50));
            continue;
        }
        journal.append(&records)?;
        let now = started.elapsed().as_secs_f64();
        for _ in &records {
            let arrived = (latencies.len() + 1) as f64 / STEADY_RATE;
            latencies.push((now - arrived) * 1e3);
        }
    }
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "acknowledged, {name}, at {STEADY_RATE} records/s for {STEADY_TIME:?}: p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, most {:.2} ms",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    Ok(())
}

/// A child that has told that it is ready, and waits.
fn started_child(role: &str, folder: &Path) -> Outcome<(Child, String)> {
    let mut child = Command::new(std::env::current_exe()?)
        .env(ROLE, role)
        .env(FOLDER, folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    Ok((child, line))
}

fn start(parent: &Path) -> Outcome {
    let folder = folder(parent)?;
    for (role, how) in [("fill", "kill -9"), ("add", "kill -9"), ("add", "a clean end")] {
        let (mut child, told) = started_child(role, folder.path())?;
        if how == "kill -9" {
            child.kill()?;
        } else {
            drop(child.stdin.take());
        }
        child.wait()?;
        let started = Instant::now();
        let journal = open(folder.path())?;
        println!("start after {how} with {}: {:?}", told.trim(), started.elapsed());
        drop(journal);
    }
    Ok(())
}

fn backlog(parent: &Path) -> Outcome {
    let folder = folder(parent)?;
    let (mut child, told) = started_child("backlog", folder.path())?;
    drop(child.stdin.take());
    child.wait()?;
    println!("backlog: {}", told.trim());
    let (mut child, told) = started_child("drain", folder.path())?;
    drop(child.stdin.take());
    child.wait()?;
    println!("drain: {}", told.trim());
    Ok(())
}

fn child(role: &str, folder: &Path) -> Outcome {
    let mut journal = open(folder)?;
    match role {
        "fill" => {
            let records = group(GROUP);
            while journal.bytes() < scaled(1e9) {
                for _ in 0..16 {
                    journal.append(&records)?;
                }
            }
            println!("{} MB on disk", journal.bytes() / 1_000_000);
        }
        "add" => {
            journal.append(&group(GROUP))?;
            println!("{} MB on disk", journal.bytes() / 1_000_000);
        }
        "backlog" => {
            let records = group(GROUP);
            let count = scaled(1e7) / GROUP * GROUP;
            while journal.next_sequence().0 < count {
                journal.append(&records)?;
            }
            let through = Sequence(journal.next_sequence().0 - 1);
            let reader = journal.reader();
            let mut after = Sequence(0);
            for _ in 0..50 {
                let batch = reader.read(Lane::Readings, after, through, 4_096);
                after = batch.records.last().map_or(after, |record| record.sequence);
            }
            println!(
                "{} records waiting, {} read from the front, {} MB on disk, {}",
                through.0,
                after.0,
                journal.bytes() / 1_000_000,
                memory()?
            );
        }
        "drain" => drain(&mut journal)?,
        other => return Err(format!("no role {other}").into()),
    }
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

fn drain(journal: &mut SegmentedJournal) -> Outcome {
    let through = Sequence(journal.next_sequence().0 - 1);
    let reader = journal.reader();
    let (started, cpu) = (Instant::now(), cpu_seconds()?);
    let mut after = Sequence(0);
    while after < through {
        let batch = reader.read(Lane::Readings, after, through, 4_096);
        let Some(last) = batch.records.last() else { return Err(format!("{batch:?}").into()) };
        after = last.sequence;
        journal.trim(Lane::Readings, after)?;
    }
    journal.save()?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{:.0} records/s read and trimmed, {:.2} CPU seconds per million, {:.1} MB on disk after it, {}",
        through.0 as f64 / seconds,
        (cpu_seconds()? - cpu) * 1e6 / through.0 as f64,
        journal.bytes() as f64 / 1e6,
        memory()?
    );
    Ok(())
}

fn memory() -> Outcome<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map_or_else(String::new, |line| line.trim_start_matches([':', '\t', ' ']).to_owned())
    };
    Ok(format!("VmRSS {}, VmHWM {}", of("VmRSS"), of("VmHWM")))
}
