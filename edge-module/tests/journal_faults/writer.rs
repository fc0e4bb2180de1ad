//! The child process that works with the journal until something happens to it, and what it tells.
//!
//! Records are numbered by the test, from one process to the next, apart from the journal's sequences. Lane and payload
//! follow from the number, so that whoever reads a record knows whether it is right. Lines of [`Told`] go to the standard
//! output and, on a recording disk, into the record of changes, between the changes before and after.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use edge_module::store::{Journal as _, JournalError, JournalSettings, Lane, SegmentedJournal};
use shared_proto::model::{EventTime, Sequence};

use crate::random::Random;

const ROLE: &str = "JOURNAL_WRITER_FOLDER";
const FIRST_NUMBER: &str = "JOURNAL_WRITER_FIRST_NUMBER";
const SEED: &str = "JOURNAL_WRITER_SEED";
const STEPS: &str = "JOURNAL_WRITER_STEPS";
const NOW: &str = "JOURNAL_WRITER_NOW";
const SEGMENT: &str = "JOURNAL_WRITER_SEGMENT";
/// Small: segments begin, end and are deleted all the time.
pub(crate) const SMALL_SEGMENT_BYTES: u64 = 128 * 1024;
/// Large: all of a life is in one segment of each lane.
const LARGE_SEGMENT_BYTES: u64 = 64 << 20;
const RETRY_PAUSE: Duration = Duration::from_millis(2);
/// A writer whose disk refuses for longer ends with an error. The test lifts the obstacle long before.
const REFUSED_MAX: Duration = Duration::from_secs(300);

/// What a writer does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    /// Number of the first record.
    pub(crate) first_number: u64,
    pub(crate) seed: u64,
    /// Steps after which it kills itself, on a recording disk; 0: it never ends.
    pub(crate) steps: u64,
    pub(crate) now: EventTime,
    pub(crate) segment_bytes: u64,
}

/// One line of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Opened {
        generation: u64,
        next_sequence: u64,
        losses: u64,
    },
    /// About to append the records `first..end`.
    Offered {
        first: u64,
        end: u64,
    },
    /// The journal has acknowledged the records `first..end`; the next sequence is `next_sequence`.
    Acknowledged {
        first: u64,
        end: u64,
        next_sequence: u64,
    },
    /// The journal refused; the same records are offered again.
    Refused,
    /// About to trim.
    Trimming {
        lane: Lane,
        through: u64,
    },
}

impl Told {
    fn to_line(self) -> String {
        match self {
            Self::Opened { generation, next_sequence, losses } => {
                format!("opened {generation} {next_sequence} {losses}")
            }
            Self::Offered { first, end } => format!("offered {first} {end}"),
            Self::Acknowledged { first, end, next_sequence } => {
                format!("acknowledged {first} {end} {next_sequence}")
            }
            Self::Refused => "refused".to_owned(),
            Self::Trimming { lane, through } => format!("trimming {} {through}", lane.as_str()),
        }
    }

    /// Nothing for a line of somebody else: the test harness of the child speaks too.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| words.get(index).and_then(|word| word.parse::<u64>().ok());
        match *words.first()? {
            "opened" => Some(Self::Opened {
                generation: number(1)?,
                next_sequence: number(2)?,
                losses: number(3)?,
            }),
            "offered" => Some(Self::Offered { first: number(1)?, end: number(2)? }),
            "acknowledged" => Some(Self::Acknowledged {
                first: number(1)?,
                end: number(2)?,
                next_sequence: number(3)?,
            }),
            "refused" => Some(Self::Refused),
            "trimming" => {
                let lane =
                    Lane::ALL.into_iter().find(|lane| Some(&lane.as_str()) == words.get(1))?;
                Some(Self::Trimming { lane, through: number(2)? })
            }
            _ => None,
        }
    }
}

/// The only place that names all fields.
pub(crate) fn settings(segment_bytes: u64) -> JournalSettings {
    JournalSettings { segment_bytes, bytes_max: 1 << 30, free_bytes_min: 0, cache_bytes: 1 << 20 }
}

pub(crate) fn either_segment_bytes(random: &mut Random) -> u64 {
    if random.is_one_in(3) { LARGE_SEGMENT_BYTES } else { SMALL_SEGMENT_BYTES }
}

/// Where a record belongs.
pub(crate) fn lane_of(number: u64) -> Lane {
    match Random::new(number).of(0..10) {
        0 | 1 => Lane::Events,
        2 => Lane::DeadLetters,
        3 => Lane::Waveforms,
        _ => Lane::Readings,
    }
}

/// The bytes of a record: its number and bytes that follow from it.
pub(crate) fn payload_of(number: u64) -> Vec<u8> {
    let mut random = Random::new(number ^ 0x5EED);
    let length = if random.is_one_in(60) { random.of(4_000..60_000) } else { random.of(8..300) };
    let mut payload = number.to_le_bytes().to_vec();
    while (payload.len() as u64) < length {
        payload.extend_from_slice(&random.number().to_le_bytes());
    }
    payload
}

/// The number that a payload claims to have.
pub(crate) fn number_of(payload: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(payload.get(..8)?.try_into().ok()?))
}

/// A writer that runs; killed when dropped.
pub(crate) struct Writer {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Writer {
    /// Starts this test binary again, as a writer of the journal in `folder`.
    pub(crate) fn start(folder: &Path, task: Task, environment: &[(String, String)]) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "writer::child", "--nocapture", "--test-threads=1"])
            .env(ROLE, folder)
            .env(FIRST_NUMBER, task.first_number.to_string())
            .env(SEED, task.seed.to_string())
            .env(STEPS, task.steps.to_string())
            .env(NOW, task.now.micros().to_string())
            .env(SEGMENT, task.segment_bytes.to_string())
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a writer starts");
        let lines = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        Self { child, lines }
    }

    /// The next that it tells; nothing when it has ended.
    pub(crate) fn next(&mut self) -> Option<Told> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line).expect("a readable pipe") == 0 {
                return None;
            }
            // A line cut by the kill says nothing.
            if let Some(told) = line.strip_suffix('\n').and_then(Told::parse) {
                return Some(told);
            }
        }
    }

    /// SIGKILL; gives what it had told and nobody had read.
    pub(crate) fn kill(mut self) -> Vec<Told> {
        self.child.kill().expect("killed");
        self.wait_killed()
    }

    /// Waits for its end, which must be by SIGKILL.
    pub(crate) fn wait_killed(mut self) -> Vec<Told> {
        let rest = self.rest();
        let status = self.child.wait().expect("waited for");
        assert_eq!(status.signal(), Some(9), "the writer ended by itself: {status}");
        rest
    }

    fn rest(&mut self) -> Vec<Told> {
        let mut bytes = Vec::new();
        self.lines.read_to_end(&mut bytes).expect("a readable pipe");
        let text = String::from_utf8_lossy(&bytes);
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().filter_map(Told::parse).collect()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Both fail when it has ended before.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Does nothing unless it was started by [`Writer::start`].
#[test]
fn child() {
    let Some(folder) = std::env::var_os(ROLE).map(PathBuf::from) else { return };
    let number = |name: &str| -> u64 {
        std::env::var(name).expect(name).parse().unwrap_or_else(|_| panic!("{name}"))
    };
    let task = Task {
        first_number: number(FIRST_NUMBER),
        seed: number(SEED),
        steps: number(STEPS),
        now: EventTime::from_micros(number(NOW).cast_signed()),
        segment_bytes: number(SEGMENT),
    };
    // Ends the line that the harness has begun.
    std::io::stdout().write_all(b"\n").expect("somebody listens");
    Work::new(folder, task).run(task.steps);
}

fn tell(told: Told) {
    let line = told.to_line();
    // Never there: the recording disk writes the name down.
    std::fs::File::open(format!("/.disk-mark/{line}")).ok();
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).expect("somebody listens");
}

struct Work {
    folder: PathBuf,
    random: Random,
    now: EventTime,
    settings: JournalSettings,
    journal: Option<SegmentedJournal>,
    next_number: u64,
    trimmed: [u64; 4],
}

impl Work {
    fn new(folder: PathBuf, task: Task) -> Self {
        Self {
            folder,
            random: Random::new(task.seed),
            now: task.now,
            settings: settings(task.segment_bytes),
            journal: None,
            next_number: task.first_number,
            trimmed: [0; 4],
        }
    }

    fn run(mut self, steps: u64) {
        self.open();
        let mut step = 0;
        while steps == 0 || step < steps {
            step += 1;
            match self.random.of(0..100) {
                0 => self.open(),
                1..=8 => self.trim(),
                9..=12 => self.read(),
                _ => self.append(),
            }
        }
        std::fs::File::open("/.disk-mark/die").expect_err("never there");
    }

    fn journal(&mut self) -> &mut SegmentedJournal {
        self.journal.as_mut().expect("opened at the start")
    }

    /// Opens, or closes and opens again.
    fn open(&mut self) {
        self.journal = None;
        let mut refused_since = None;
        let journal = loop {
            match SegmentedJournal::open(&self.folder, self.settings, self.now) {
                Ok(opened) => break opened,
                Err(error) => refused(&mut refused_since, &error),
            }
        };
        tell(Told::Opened {
            generation: journal.generation().0,
            next_sequence: journal.next_sequence().0,
            losses: journal.losses().len() as u64,
        });
        self.journal = Some(journal);
    }

    /// As the journal's owner in the program does it: the same records again, with the segments opened anew.
    fn append(&mut self) {
        let count = if self.random.is_one_in(4) { 1 } else { self.random.of(1..60) };
        let (first, end) = (self.next_number, self.next_number + count);
        let records: Vec<(Lane, Vec<u8>)> =
            (first..end).map(|number| (lane_of(number), payload_of(number))).collect();
        tell(Told::Offered { first, end });
        self.next_number = end;
        let mut refused_since = None;
        let next_sequence = loop {
            match self.journal().append(&records) {
                Ok(next_sequence) => break next_sequence.0,
                Err(error) => refused(&mut refused_since, &error),
            }
            if let Err(error) = self.journal().reopen() {
                eprintln!("reopen: {error}");
            }
        };
        tell(Told::Acknowledged { first, end, next_sequence });
    }

    fn trim(&mut self) {
        let lane = Lane::ALL[self.random.of(0..4) as usize];
        let newest = self.journal().next_sequence().0 - 1;
        let through = newest.saturating_sub(self.random.of(0..2_000));
        let trimmed = &mut self.trimmed[Lane::ALL.iter().position(|of| *of == lane).expect("one")];
        if through <= *trimmed {
            return;
        }
        *trimmed = through;
        tell(Told::Trimming { lane, through });
        let is_saved = self.random.is_one_in(2);
        let journal = self.journal();
        if let Err(error) = journal.trim(lane, Sequence(through)) {
            eprintln!("trim: {error}");
        }
        if is_saved && let Err(error) = journal.save() {
            eprintln!("save: {error}");
        }
    }

    /// Reading opens and closes segments, which writes too.
    fn read(&mut self) {
        let newest = self.journal().next_sequence().0 - 1;
        let after = newest.saturating_sub(self.random.of(0..3_000));
        let lane = Lane::ALL[self.random.of(0..4) as usize];
        let reader = self.journal().reader();
        let batch = reader.read(lane, Sequence(after), Sequence(newest), 300);
        assert!(batch.losses.is_empty(), "the reader found {:?}", batch.losses);
    }
}

fn refused(since: &mut Option<Instant>, error: &JournalError) {
    if since.is_none() {
        tell(Told::Refused);
    }
    let since = since.get_or_insert_with(Instant::now);
    assert!(since.elapsed() < REFUSED_MAX, "refused for too long: {error}");
    std::thread::sleep(RETRY_PAUSE);
}
