//! What ends the module from outside, and a watch on the threads meanwhile.

use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::bail;
use tracing::{error, info};

use super::Threads;
use crate::admin::{Board, Part};

/// How often the threads are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// What ends the module from outside.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn new() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// A signal, or the end of the stop path. Without journal or forwarder the machines are still protected: the module goes
    /// on and says that it is not ready.
    pub(super) async fn wait_for_end(
        &mut self,
        protection: &JoinHandle<()>,
        threads: Option<&Threads>,
        board: &Board,
    ) -> anyhow::Result<()> {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        let others = threads.map(|threads| {
            [
                (Part::Journal, "journal", &threads.journal),
                (Part::Forwarder, "forwarder", &threads.forwarder),
            ]
        });
        let mut reported = [false; 2];
        loop {
            tokio::select! {
                _ = self.terminate.recv() => { info!("SIGTERM"); return Ok(()); }
                _ = self.interrupt.recv() => { info!("SIGINT"); return Ok(()); }
                _ = look.tick() => {}
            }
            if protection.is_finished() {
                bail!("thread protection ended unexpectedly");
            }
            for ((part, name, thread), is_reported) in others.iter().flatten().zip(&mut reported) {
                if thread.is_finished() && !std::mem::replace(is_reported, true) {
                    error!(
                        thread = name,
                        "ended unexpectedly: machines stay protected, restart the module"
                    );
                    board.set(*part, Err(format!("thread {name} ended: restart the module")));
                }
            }
        }
    }
}
