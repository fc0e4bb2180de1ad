//! Tasks that start again after a panic: storage and forwarding must come back, and must never take the stop path down.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::sync::watch;
use tracing::error;

use crate::admin::{Board, Part};
use crate::telemetry;

/// First and longest wait before the task runs again; a task that ran for the longest wait begins with the first again.
const RESTART_MIN: Duration = Duration::from_millis(500);
const RESTART_MAX: Duration = Duration::from_secs(30);

/// Runs a task on this thread until it ends without a panic.
///
/// # Errors
/// No runtime, or a panic after `stop`.
pub fn run_again_after_panic(
    part: Part,
    board: &Board,
    mut stop: watch::Receiver<bool>,
    mut run: impl AsyncFnMut(),
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut wait = RESTART_MIN;
    loop {
        let started = Instant::now();
        let was_stopping = *stop.borrow();
        // What a task keeps between two runs is valid after each of its steps; see its own documentation.
        if std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(run()))).is_ok() {
            return Ok(());
        }
        metrics::counter!(telemetry::TASK_PANICS, "task" => part.as_str()).increment(1);
        board.set(
            part,
            Err("panicked, starts again; please report the message in the log".to_owned()),
        );
        if was_stopping {
            bail!("{} panicked while stopping", part.as_str());
        }
        if started.elapsed() > RESTART_MAX {
            wait = RESTART_MIN;
        }
        error!(
            task = part.as_str(),
            wait_ms = wait.as_millis() as u64,
            "panicked, starts again: machines stay protected"
        );
        let is_stopping = stop.wait_for(|is_stopping| *is_stopping);
        // Stopping ends the wait, not the task: it has to write what waits.
        runtime.block_on(async { drop(tokio::time::timeout(wait, is_stopping).await) });
        wait = (wait * 2).min(RESTART_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_panics_runs_again_and_keeps_what_it_had() {
        let board = Board::default();
        let (_stop, stopped) = watch::channel(false);
        let mut runs = 0;
        let result = run_again_after_panic(Part::Journal, &board, stopped, async || {
            runs += 1;
            assert!(runs >= 3, "run {runs} fails");
        });
        assert!(result.is_ok());
        assert_eq!(runs, 3);
        assert!(board.lines().concat().contains("panicked"));
    }

    #[test]
    fn a_task_that_panics_while_stopping_is_given_up() {
        let (_stop, stopped) = watch::channel(true);
        let result = run_again_after_panic(Part::Journal, &Board::default(), stopped, async || {
            panic!("for the test");
        });
        assert!(result.is_err());
    }
}
