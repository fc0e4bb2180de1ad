//! Tells systemd that the module is up and well, in the form of sd_notify(3): one datagram of `NAME=value` lines to the socket
//! that `NOTIFY_SOCKET` names. Elsewhere, in a container for example, the variable is not set and nothing is told.
//!
//! `READY=1` means that the machines are protected. Broker, disk and Kafka are not waited for: a unit that did not come up
//! without them would be restarted for what a restart cannot mend. `WATCHDOG=1` is sent by the stop path's own thread, three
//! times in `WATCHDOG_USEC`, and only while the main thread comes round, too: either one that hangs has the unit restarted,
//! and a disk or a network that hangs does not. `STATUS=` has those lines of `/readyz` that are not `ok`.
//!
//! Nobody waits for this: a datagram that systemd does not take at once is dropped, and the next one tells the same.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{error, info, warn};

use crate::admin::Board;

/// Times that the watchdog is fed before it would bite.
const FEEDS: u32 = 3;
/// How often the main thread shows that it comes round.
const PULSE_INTERVAL: Duration = Duration::from_secs(1);
/// Without a watchdog the stop path has nothing to tell after `READY=1`.
const UNWATCHED: Duration = Duration::from_secs(3600);
/// Longest status, in characters: it is one line of `systemctl status`.
const STATUS_CHARS_MAX: usize = 300;

/// Who supervises this process, if anybody does. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Supervisor(Option<Arc<Link>>);

#[derive(Debug)]
struct Link {
    socket: UnixDatagram,
    address: SocketAddr,
    /// After this long without being fed the watchdog restarts the unit.
    bites_after: Option<Duration>,
    started: Instant,
    /// When the main thread came round last, in milliseconds from the start.
    main_pulse_ms: AtomicU64,
}

/// Why nobody is told.
#[derive(Debug, thiserror::Error)]
enum NotifyError {
    #[error("NOTIFY_SOCKET {0:?} is neither a path nor an abstract name")]
    Address(String),
    #[error("NOTIFY_SOCKET: {0}")]
    Socket(#[from] std::io::Error),
}

impl Supervisor {
    /// By the variables that systemd sets.
    #[must_use]
    pub fn from_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        // The watchdog of a parent is not ours to feed.
        let is_ours = number("WATCHDOG_PID").is_none_or(|id| id == u64::from(std::process::id()));
        let bites_after = number("WATCHDOG_USEC")
            .filter(|micros| is_ours && *micros > 0)
            .map(Duration::from_micros);
        match Link::new(&name, bites_after) {
            Ok(link) => Self(Some(Arc::new(link))),
            Err(error) => {
                warn!(%error, "the service manager is not told that the module is up");
                Self::default()
            }
        }
    }

    /// To run on the stop path's thread, once that protects the machines: says so, then feeds the watchdog. Never ends where
    /// there is somebody to tell.
    pub async fn feed(self) {
        let Some(link) = self.0 else { return };
        let mut turns = interval(link.feed_interval());
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        turns.tick().await;
        // A unit that never becomes ready is killed, so this one is told until it is taken.
        while !link.tell("READY=1\nWATCHDOG=1") {
            sleep(PULSE_INTERVAL).await;
        }
        info!(
            watchdog_ms = link.bites_after.map(|it| it.as_millis() as u64),
            "service manager told"
        );
        let mut was_well = true;
        loop {
            turns.tick().await;
            let is_well = link.is_main_well(Instant::now());
            if is_well && link.bites_after.is_some() {
                link.tell("WATCHDOG=1");
            }
            if was_well && !is_well {
                error!("the main thread does not come round: the watchdog is no longer fed");
            }
            was_well = is_well;
        }
    }

    /// To run on the main thread: shows that it comes round, and what is not ready. Never ends where there is somebody to tell.
    pub async fn pulse(self, board: Board, stop: watch::Receiver<bool>) {
        let Some(link) = self.0 else { return };
        let mut turns = interval(PULSE_INTERVAL.min(link.feed_interval()));
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = String::new();
        loop {
            turns.tick().await;
            link.pulse(Instant::now());
            let state = state(&board.lines(), *stop.borrow());
            // What was not taken is told again.
            if state != told && link.tell(&state) {
                told = state;
            }
        }
    }
}

impl Link {
    fn new(name: &OsStr, bites_after: Option<Duration>) -> Result<Self, NotifyError> {
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            [..] => return Err(NotifyError::Address(name.to_string_lossy().into_owned())),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let (started, main_pulse_ms) = (Instant::now(), AtomicU64::new(0));
        Ok(Self { socket, address, bites_after, started, main_pulse_ms })
    }

    fn feed_interval(&self) -> Duration {
        // A timer cannot have no length.
        self.bites_after.map_or(UNWATCHED, |it| (it / FEEDS).max(Duration::from_millis(1)))
    }

    /// Whether it was taken. A supervisor that is away or busy is no reason to do anything else.
    fn tell(&self, state: &str) -> bool {
        self.socket.send_to_addr(state.as_bytes(), &self.address).is_ok()
    }

    fn pulse(&self, now: Instant) {
        self.main_pulse_ms.store(self.since_start_ms(now), Ordering::Relaxed);
    }

    /// Whether the main thread has come round within the time between two feeds, and two pulses at least.
    fn is_main_well(&self, now: Instant) -> bool {
        let silent_max = self.feed_interval().max(PULSE_INTERVAL * 2).as_millis();
        let pulse_ms = self.main_pulse_ms.load(Ordering::Relaxed);
        u128::from(self.since_start_ms(now).saturating_sub(pulse_ms)) <= silent_max
    }

    fn since_start_ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_millis() as u64
    }
}

/// What is told of the lines of `/readyz`.
fn state(lines: &[String], is_stopping: bool) -> String {
    if is_stopping {
        return "STOPPING=1\nSTATUS=stopping".to_owned();
    }
    let missing = lines.iter().map(|line| line.trim_end()).filter(|line| !line.ends_with(": ok"));
    let missing = missing.collect::<Vec<_>>().join("; ");
    let status = if missing.is_empty() { "all parts are ready".to_owned() } else { missing };
    // A line break would begin another variable.
    let one_line = status.chars().map(|it| if it.is_control() { ' ' } else { it });
    let status: String = one_line.take(STATUS_CHARS_MAX).collect();
    format!("STATUS={status}")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::admin::Part;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn listen(path: &Path) -> UnixDatagram {
        let socket = UnixDatagram::bind(path).expect("a socket");
        socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        socket
    }

    fn next(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).expect("a datagram within the deadline");
        String::from_utf8(buffer[..length].to_vec()).expect("text")
    }

    fn supervisor(path: &Path, bites_after: Option<Duration>) -> Supervisor {
        Supervisor(Some(Arc::new(Link::new(path.as_os_str(), bites_after).expect("a link"))))
    }

    #[tokio::test]
    async fn the_stop_path_says_that_it_is_up_and_then_feeds_the_watchdog() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let manager = listen(&path);
        let feed = tokio::spawn(supervisor(&path, Some(Duration::from_millis(60))).feed());
        let told = tokio::task::spawn_blocking(move || [next(&manager), next(&manager)]);
        assert_eq!(told.await.expect("told"), ["READY=1\nWATCHDOG=1", "WATCHDOG=1"]);
        feed.abort();
    }

    #[tokio::test]
    async fn the_main_thread_tells_what_is_missing_and_when_it_stops() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let manager = listen(&path);
        let board = Board::default();
        board.set(Part::Journal, Err("disk\nfull".to_owned()));
        board.set(Part::Kafka, Ok(()));
        let (stop, stopping) = watch::channel(false);
        let supervisor = supervisor(&path, Some(Duration::from_millis(30)));
        let pulse = tokio::spawn(supervisor.pulse(board.clone(), stopping));
        let (first, manager) =
            tokio::task::spawn_blocking(move || (next(&manager), manager)).await.expect("told");
        assert_eq!(first, "STATUS=journal: disk full");
        board.set(Part::Journal, Ok(()));
        let (second, manager) =
            tokio::task::spawn_blocking(move || (next(&manager), manager)).await.expect("told");
        assert_eq!(second, "STATUS=all parts are ready");
        stop.send_replace(true);
        let third = tokio::task::spawn_blocking(move || next(&manager)).await.expect("told");
        assert_eq!(third, "STOPPING=1\nSTATUS=stopping");
        pulse.abort();
    }

    #[test]
    fn a_main_thread_that_hangs_is_not_well() {
        let path = Path::new("/nobody/listens/here");
        let link = Link::new(path.as_os_str(), Some(Duration::from_secs(30))).expect("a link");
        let at = |seconds: u64| link.started + Duration::from_secs(seconds);
        assert!(link.is_main_well(at(10)), "it may be starting");
        assert!(!link.is_main_well(at(11)));
        link.pulse(at(11));
        assert!(link.is_main_well(at(21)));
        assert!(!link.is_main_well(at(22)));
        assert!(!link.tell("READY=1"), "nobody listens, and that is no panic");
    }

    #[test]
    fn an_abstract_name_and_a_path_are_taken_and_nothing_else() {
        assert!(Link::new(OsStr::new("@edge-module-test"), None).is_ok());
        for name in ["run/notify", "vsock:2:1234", &"/x".repeat(200)] {
            assert!(Link::new(OsStr::new(name), None).is_err(), "{name}");
        }
    }

    #[test]
    fn a_status_is_one_short_line() {
        let lines = ["journal: ok\n".to_owned(), format!("kafka: {}\n", "x\u{1b}".repeat(400))];
        let state = state(&lines, false);
        assert!(state.starts_with("STATUS=kafka: x x"), "{state}");
        assert!(!state.contains('\n') && !state.contains("journal"), "{state}");
        assert_eq!(state.chars().count(), STATUS_CHARS_MAX + "STATUS=".len());
    }
}
