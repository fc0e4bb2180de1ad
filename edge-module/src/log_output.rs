//! Log lines on their way to standard error.
//!
//! Whoever logs never waits and never fails: lines go into a bounded queue, a thread of its own writes them. A full disk, a
//! closed pipe or a reader that stalls behind standard error costs lines, which are counted, and nothing else; the stop path
//! logs too.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry;

/// Lines that may wait.
const QUEUE_LINES: usize = 4_096;
/// How long the end of the program waits for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

static OUTPUT: OnceLock<LogOutput> = OnceLock::new();

enum Message {
    Line(Vec<u8>),
    /// Answered when everything before it has been tried.
    Flush(SyncSender<()>),
}

/// Where log lines go.
#[derive(Clone, Debug)]
pub struct LogOutput(SyncSender<Message>);

impl LogOutput {
    /// Starts the thread that writes to standard error.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start() -> io::Result<Self> {
        Self::start_with(io::stderr()).map(|output| OUTPUT.get_or_init(|| output).clone())
    }

    fn start_with(target: impl Write + Send + 'static) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE_LINES);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || run(&receiver, target))?;
        Ok(Self(sender))
    }

    fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        // A writer that stalls, or a queue that is full: the program ends all the same.
        let is_asked = self.0.try_send(Message::Flush(done)).is_ok();
        if is_asked && is_done.recv_timeout(FLUSH_TIMEOUT).is_err() {
            lose();
        }
    }
}

/// Waits a moment for the last lines before the program ends.
pub fn flush() {
    if let Some(output) = OUTPUT.get() {
        output.flush();
    }
}

fn run(messages: &Receiver<Message>, mut target: impl Write) {
    for message in messages {
        match message {
            Message::Line(line) => {
                if target.write_all(&line).is_err() {
                    lose();
                }
            }
            Message::Flush(done) => drop(done.send(())),
        }
    }
}

fn lose() {
    metrics::counter!(telemetry::LOG_LINES_LOST).increment(1);
}

/// One line while it is being written.
#[derive(Debug)]
pub struct LogLine<'a> {
    output: &'a LogOutput,
    bytes: Vec<u8>,
}

impl Write for LogLine<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogLine<'_> {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.bytes);
        if !line.is_empty() && self.output.0.try_send(Message::Line(line)).is_err() {
            lose();
        }
    }
}

impl<'a> MakeWriter<'a> for LogOutput {
    type Writer = LogLine<'a>;

    fn make_writer(&'a self) -> LogLine<'a> {
        LogLine { output: self, bytes: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A target that fails, or waits until it may go on.
    struct Target(Option<mpsc::Receiver<()>>, mpsc::SyncSender<Vec<u8>>);

    impl Write for Target {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match &self.0 {
                None => Err(io::ErrorKind::StorageFull.into()),
                Some(go_on) => {
                    go_on.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
                    self.1.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
                    Ok(bytes.len())
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_target_that_fails_or_stalls_stops_nobody() {
        let (written, _lines) = mpsc::sync_channel(16);
        let failing = LogOutput::start_with(Target(None, written.clone())).expect("started");
        writeln!(failing.make_writer(), "lost").expect("never fails");
        failing.flush();

        let (go_on, may_go_on) = mpsc::sync_channel(16);
        let (written, lines) = mpsc::sync_channel(16);
        let stalled = LogOutput::start_with(Target(Some(may_go_on), written)).expect("started");
        for number in 0..QUEUE_LINES + 100 {
            writeln!(stalled.make_writer(), "{number}").expect("never fails, never waits");
        }
        for _ in 0..10 {
            go_on.send(()).expect("the thread waits");
        }
        let first: Vec<Vec<u8>> = lines.iter().take(10).collect();
        assert_eq!(first[0], b"0\n");
        assert_eq!(first[9], b"9\n");
    }
}
