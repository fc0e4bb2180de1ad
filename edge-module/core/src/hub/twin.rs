//! The twin: what an operator desires of us, and what we report of ourselves.
//!
//! After each connect the twin is asked for (GET) and nothing is reported before its answer, since a hub does not repeat the
//! changes that were missed. Its answer is the truth, whatever its version. A change of the desired properties that follows on the
//! known version is merged, an older one is passed over, and a gap asks for the whole again. What is owed to the hub is the
//! difference between what it shows and what is wanted; it is known anew after each answer, so a lost or repeated
//! report does no harm. Where it is in doubt whether a report was applied, what the hub shows is asked for.
//!
//! Limits: one GET and one report in flight, 16 changes kept while a GET is, [`BODY_BYTES_MAX`] bytes of a body, and those of
//! [`TwinSettings`]. Nothing here survives a restart: the hub holds it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use self::document::{
    Answer, Desired, parse_answer, parse_patch, part_of, reason_of, text_of, without_nulls,
};
pub use self::document::{BODY_BYTES_MAX, difference, merge};

mod document;
#[cfg(test)]
mod tests;

/// Changes of the desired properties that are kept while a GET is in flight.
const PATCHES_KEPT_MAX: usize = 16;
/// Reports without an answer whose late answer is still recognised.
const ABANDONED_MAX: usize = 8;

/// Waits and limits of a [`Twin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwinSettings {
    /// A request without an answer for this long is taken as lost.
    pub answer_timeout: Duration,
    /// Wait after the first failure of a request; doubles with each one that follows.
    pub retry_min: Duration,
    /// Longest wait.
    pub retry_max: Duration,
    /// Least time from one report to the next; the first after a connect does not wait.
    pub report_interval_min: Duration,
    /// Largest text of the reported properties; a hub holds 32 KiB.
    pub report_bytes_max: usize,
}

impl Default for TwinSettings {
    fn default() -> Self {
        Self {
            answer_timeout: Duration::from_secs(30),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(300),
            report_interval_min: Duration::from_secs(5),
            report_bytes_max: 30 * 1024,
        }
    }
}

/// What to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TwinRequest {
    /// Ask for the whole twin.
    Get {
        /// Id of the request.
        rid: u64,
    },
    /// Change the reported properties.
    Report {
        /// Id of the request.
        rid: u64,
        /// The patch in JSON.
        body: String,
    },
}

/// What became known.
#[derive(Clone, Debug, PartialEq)]
pub enum TwinEvent {
    /// The desired properties are these now: to be applied, or refused and reported as such.
    Desired {
        /// Their version.
        version: u64,
        /// All of them, without the hub's own.
        properties: Map<String, Value>,
    },
    /// The hub will not take the reported properties; they are not sent again until they change or the next connect.
    ReportRefused {
        /// As of HTTP: 400 or 413.
        status: u16,
        /// The hub's own words.
        reason: String,
    },
    /// The properties to report are too large; the hub goes on showing what it has until they change.
    ReportTooLarge {
        /// Size of their text.
        bytes: usize,
        /// How large it may be.
        limit: usize,
    },
    /// A body that is no twin: to be counted; the twin is asked for again.
    Invalid {
        /// What is wrong with it.
        what: String,
    },
}

/// Keeps the desired properties up to date and the reported ones true.
#[derive(Debug)]
pub struct Twin {
    pace: Pace,
    next_rid: u64,
    /// As last told; kept over a loss of the connection.
    desired: Option<Desired>,
    wanted: Option<Wanted>,
    /// Present while connected.
    link: Option<Link>,
    /// Reports that may yet be applied, though nobody waits for their answer any more.
    abandoned: VecDeque<u64>,
}

/// What the hub ought to show.
#[derive(Debug)]
struct Wanted {
    document: Map<String, Value>,
    /// Changes with the document.
    revision: u64,
    is_refused: bool,
    is_too_large: bool,
}

/// What is known since the last connect.
#[derive(Debug)]
struct Link {
    get: Get,
    get_failures: u32,
    /// Whether a GET was answered, so that changes can be told from gaps.
    is_known: bool,
    /// Whether the answer to the GET in flight will not be enough.
    ask_again: bool,
    /// Changes that came while a GET was due or in flight, by version.
    kept: BTreeMap<u64, Map<String, Value>>,
    /// What the hub shows; `None` before the first answer and while in doubt.
    shown: Option<Map<String, Value>>,
    /// The patch from what is shown to what is wanted.
    owed: Map<String, Value>,
    report: Option<Report>,
    report_failures: u32,
    /// No report before.
    report_from: Instant,
}

#[derive(Debug)]
enum Get {
    Idle,
    Due(Instant),
    InFlight {
        rid: u64,
        deadline: Instant,
        /// Whether a report was in flight when it was sent: its answer may or may not show that.
        overlaps_report: bool,
    },
}

#[derive(Debug)]
struct Report {
    rid: u64,
    deadline: Instant,
    patch: Map<String, Value>,
    revision: u64,
}

impl Twin {
    /// A twin of which nothing is known. `seed` spreads the retries of many devices, and the ids of requests, so that an answer to
    /// the process before is not taken for one of ours.
    #[must_use]
    pub fn new(settings: TwinSettings, seed: u64) -> Self {
        let mut pace = Pace::new(settings, seed);
        let next_rid = pace.random() & 0xFFFF_FFFF;
        let (desired, wanted, link) = (None, None, None);
        Self { pace, next_rid, desired, wanted, link, abandoned: VecDeque::new() }
    }

    /// The connection is there and the topics are subscribed.
    pub fn handle_connected(&mut self, now: Instant) {
        self.handle_disconnected();
        if let Some(wanted) = &mut self.wanted {
            wanted.is_refused = false;
        }
        self.link = Some(Link::new(now));
    }

    /// The connection is lost, and with it what is in flight.
    pub fn handle_disconnected(&mut self) {
        if let Some(report) = self.link.take().and_then(|link| link.report) {
            self.abandon(report.rid);
        }
    }

    /// Takes the answer to a request. One that nobody waits for is passed over.
    #[must_use]
    pub fn handle_answer(
        &mut self,
        status: u16,
        rid: &str,
        body: &[u8],
        now: Instant,
    ) -> Vec<TwinEvent> {
        let Some(link) = &mut self.link else { return Vec::new() };
        let is_ours = |ours: u64| ours.to_string() == rid;
        if let Get::InFlight { rid, overlaps_report, .. } = link.get
            && is_ours(rid)
        {
            return self.handle_twin(status, body, overlaps_report, now);
        }
        if let Some(report) = link.report.take_if(|report| is_ours(report.rid)) {
            return self.handle_reported(&report, status, body, now);
        }
        if let Some(at) = self.abandoned.iter().position(|rid| is_ours(*rid)) {
            self.abandoned.remove(at);
            // Applied after all, and perhaps after the answer that told what is shown.
            if (200..300).contains(&status) {
                link.doubt(now);
            }
        }
        Vec::new()
    }

    /// Takes a change of the desired properties that leads to `version`.
    #[must_use]
    pub fn handle_patch(&mut self, version: u64, body: &[u8], now: Instant) -> Vec<TwinEvent> {
        let Some(link) = &mut self.link else { return Vec::new() };
        let known = self.desired.as_ref().filter(|_| link.is_settled());
        if known.is_some_and(|known| version <= known.version) {
            return Vec::new();
        }
        let patch = match parse_patch(body) {
            Ok(patch) => patch,
            Err(what) => {
                link.ask(now);
                return vec![TwinEvent::Invalid { what }];
            }
        };
        let Some(known) = known else {
            link.keep(version, patch);
            return Vec::new();
        };
        if version - 1 != known.version {
            // Kept: it may be newer than the answer.
            link.ask(now);
            link.keep(version, patch);
            return Vec::new();
        }
        let mut desired = Desired { properties: known.properties.clone(), version };
        merge(&mut desired.properties, &patch);
        self.tell(desired)
    }

    /// Sets the whole of what the hub ought to show; members that are null count as absent. Says so if that is too large.
    pub fn set_reported(&mut self, wanted: Map<String, Value>, now: Instant) -> Option<TwinEvent> {
        let document = without_nulls(&wanted);
        let before = self.wanted.as_ref();
        if before.is_some_and(|before| before.document == document) {
            return None;
        }
        let revision = before.map_or(0, |before| before.revision + 1);
        let (bytes, limit) = (text_of(&document).len(), self.pace.settings.report_bytes_max);
        let is_too_large = bytes > limit;
        self.wanted = Some(Wanted { document, revision, is_refused: false, is_too_large });
        self.reckon(now);
        is_too_large.then_some(TwinEvent::ReportTooLarge { bytes, limit })
    }

    /// What to send now. To be called until it has nothing, after each input and when [`Self::poll_timeout`] says.
    #[must_use = "what is taken is taken as sent"]
    pub fn poll(&mut self, now: Instant) -> Option<TwinRequest> {
        self.give_up_waiting(now);
        self.poll_get(now).or_else(|| self.poll_report(now))
    }

    /// When to call [`Self::poll`] again; a time in the past means at once.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let link = self.link.as_ref()?;
        let (get, may_report) = match link.get {
            Get::Idle => (None, true),
            Get::Due(at) => (Some(at), false),
            Get::InFlight { deadline, .. } => (Some(deadline), false),
        };
        let report = match &link.report {
            Some(report) => Some(report.deadline),
            None => (may_report && !link.owed.is_empty()).then_some(link.report_from),
        };
        get.into_iter().chain(report).min()
    }

    /// The desired properties and their version, once they are known.
    #[must_use]
    pub fn desired(&self) -> Option<(&Map<String, Value>, u64)> {
        self.desired.as_ref().map(|desired| (&desired.properties, desired.version))
    }

    fn give_up_waiting(&mut self, now: Instant) {
        let Some(link) = &mut self.link else { return };
        if let Get::InFlight { deadline, .. } = link.get
            && deadline <= now
        {
            link.retry_get(&mut self.pace, now);
        }
        if let Some(report) = link.report.take_if(|report| report.deadline <= now) {
            link.retry_report(&mut self.pace, now);
            link.doubt(link.report_from);
            self.abandon(report.rid);
            self.reckon(now);
        }
    }

    fn poll_get(&mut self, now: Instant) -> Option<TwinRequest> {
        let link = self.link.as_mut()?;
        let Get::Due(at) = link.get else { return None };
        if now < at {
            return None;
        }
        let rid = next(&mut self.next_rid);
        let deadline = now + self.pace.settings.answer_timeout;
        link.get = Get::InFlight { rid, deadline, overlaps_report: link.report.is_some() };
        Some(TwinRequest::Get { rid })
    }

    fn poll_report(&mut self, now: Instant) -> Option<TwinRequest> {
        let (link, wanted) = (self.link.as_mut()?, self.wanted.as_ref()?);
        let is_free = matches!(link.get, Get::Idle) && link.report.is_none();
        if !is_free || link.owed.is_empty() || now < link.report_from {
            return None;
        }
        let settings = self.pace.settings;
        let rid = next(&mut self.next_rid);
        let patch = part_of(&link.owed, settings.report_bytes_max);
        let body = text_of(&patch);
        let deadline = now + settings.answer_timeout;
        link.report = Some(Report { rid, deadline, patch, revision: wanted.revision });
        link.report_from = now + settings.report_interval_min;
        Some(TwinRequest::Report { rid, body })
    }

    /// The answer to the GET in flight.
    fn handle_twin(
        &mut self,
        status: u16,
        body: &[u8],
        overlaps_report: bool,
        now: Instant,
    ) -> Vec<TwinEvent> {
        let Some(link) = &mut self.link else { return Vec::new() };
        if !(200..300).contains(&status) {
            link.retry_get(&mut self.pace, now);
            return Vec::new();
        }
        match parse_answer(body) {
            Ok(answer) => {
                let desired = link.take_answer(answer, overlaps_report, &mut self.pace, now);
                self.reckon(now);
                self.tell(desired)
            }
            Err(what) => {
                link.retry_get(&mut self.pace, now);
                vec![TwinEvent::Invalid { what }]
            }
        }
    }

    /// The answer to the report that was in flight.
    fn handle_reported(
        &mut self,
        report: &Report,
        status: u16,
        body: &[u8],
        now: Instant,
    ) -> Vec<TwinEvent> {
        let Some(link) = &mut self.link else { return Vec::new() };
        let mut events = Vec::new();
        match status {
            200..300 => {
                link.report_failures = 0;
                if let Some(shown) = &mut link.shown {
                    merge(shown, &report.patch);
                }
            }
            400 | 413 => {
                if let Some(wanted) = &mut self.wanted
                    && wanted.revision == report.revision
                {
                    wanted.is_refused = true;
                }
                events.push(TwinEvent::ReportRefused { status, reason: reason_of(body) });
            }
            429 => link.retry_report(&mut self.pace, now),
            _ => {
                link.retry_report(&mut self.pace, now);
                link.doubt(link.report_from);
            }
        }
        self.reckon(now);
        events
    }

    /// Finds anew what is owed.
    fn reckon(&mut self, now: Instant) {
        let Some(link) = &mut self.link else { return };
        let wanted = self.wanted.as_ref().filter(|it| !it.is_refused && !it.is_too_large);
        link.owed = match (&link.shown, wanted) {
            (Some(shown), Some(wanted)) => difference(shown, &wanted.document),
            (None, Some(_)) | (Some(_) | None, None) => Map::new(),
        };
        link.report_from = link.report_from.max(now);
    }

    fn tell(&mut self, desired: Desired) -> Vec<TwinEvent> {
        if self.desired.as_ref() == Some(&desired) {
            return Vec::new();
        }
        let Desired { version, properties } = desired.clone();
        self.desired = Some(desired);
        vec![TwinEvent::Desired { version, properties }]
    }

    fn abandon(&mut self, rid: u64) {
        if self.abandoned.len() >= ABANDONED_MAX {
            self.abandoned.pop_front();
        }
        self.abandoned.push_back(rid);
    }
}

impl Link {
    fn new(now: Instant) -> Self {
        Self {
            get: Get::Due(now),
            get_failures: 0,
            is_known: false,
            ask_again: false,
            kept: BTreeMap::new(),
            shown: None,
            owed: Map::new(),
            report: None,
            report_failures: 0,
            report_from: now,
        }
    }

    /// Whether a change can be judged by the version that is known.
    fn is_settled(&self) -> bool {
        self.is_known && !matches!(self.get, Get::InFlight { .. })
    }

    /// Asks for the twin at `at`, or once more after the answer that is awaited.
    fn ask(&mut self, at: Instant) {
        match self.get {
            Get::Idle => self.get = Get::Due(at),
            Get::Due(_) => {}
            Get::InFlight { .. } => self.ask_again = true,
        }
    }

    /// What the hub shows is not known any more.
    fn doubt(&mut self, ask_at: Instant) {
        self.shown = None;
        self.owed = Map::new();
        self.ask(ask_at);
    }

    /// Keeps a change until the answer tells whether it is newer.
    fn keep(&mut self, version: u64, patch: Map<String, Value>) {
        if self.kept.len() < PATCHES_KEPT_MAX {
            self.kept.insert(version, patch);
        } else {
            self.ask_again = true;
        }
    }

    /// Takes what the hub says for true, with the changes that are newer, and gives the desired properties.
    fn take_answer(
        &mut self,
        answer: Answer,
        overlaps_report: bool,
        pace: &mut Pace,
        now: Instant,
    ) -> Desired {
        if !overlaps_report {
            self.shown = Some(answer.reported);
        }
        let mut is_enough = !std::mem::take(&mut self.ask_again) && self.shown.is_some();
        let mut desired = answer.desired;
        for (version, patch) in std::mem::take(&mut self.kept) {
            if version.checked_sub(1) == Some(desired.version) {
                merge(&mut desired.properties, &patch);
                desired.version = version;
            } else if version > desired.version {
                is_enough = false;
            }
        }
        self.is_known = true;
        if is_enough {
            self.get = Get::Idle;
            self.get_failures = 0;
        } else {
            self.retry_get(pace, now);
        }
        desired
    }

    fn retry_get(&mut self, pace: &mut Pace, now: Instant) {
        self.get = Get::Due(now + pace.wait_after(self.get_failures));
        self.get_failures = self.get_failures.saturating_add(1);
    }

    fn retry_report(&mut self, pace: &mut Pace, now: Instant) {
        let from = now + pace.wait_after(self.report_failures);
        self.report_from = self.report_from.max(from);
        self.report_failures = self.report_failures.saturating_add(1);
    }
}

/// The settings, and the chance that spreads retries: xorshift64, Marsaglia, "Xorshift RNGs", 2003.
#[derive(Debug)]
struct Pace {
    settings: TwinSettings,
    /// Never 0.
    state: u64,
}

impl Pace {
    fn new(settings: TwinSettings, seed: u64) -> Self {
        let mut pace = Self { settings, state: (seed ^ 0x9E37_79B9_7F4A_7C15).max(1) };
        // Seeds that are near to each other part in the first rounds.
        for _ in 0..8 {
            pace.random();
        }
        pace
    }

    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// How long to wait after so many failures before this one; chance takes up to half.
    fn wait_after(&mut self, failures: u32) -> Duration {
        let doubled = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
        let wait = self.settings.retry_min.saturating_mul(doubled).min(self.settings.retry_max);
        let permille = u32::try_from(self.random() % 501).expect("at most 500");
        wait - wait / 1000 * permille
    }
}

fn next(rid: &mut u64) -> u64 {
    *rid = rid.wrapping_add(1);
    *rid
}
