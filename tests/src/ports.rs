//! Ports on 127.0.0.1 that nobody listens on.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

/// Attempts before giving up: the kernel hands out ports at random.
const ATTEMPTS_MAX: usize = 1000;

static HANDED_OUT: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port that was free a moment ago and that this process has not handed out before. Below the range from which the kernel
/// takes ports of outgoing connections, so that none of those occupies it before its server starts.
///
/// # Errors
/// No port below the ephemeral range could be bound.
pub fn free_port() -> anyhow::Result<u16> {
    let mut handed_out = HANDED_OUT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for attempt in 0..ATTEMPTS_MAX {
        let port = candidate(attempt);
        if !handed_out.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            handed_out.insert(port);
            return Ok(port);
        }
    }
    anyhow::bail!("no free port in 20000..32000 after {ATTEMPTS_MAX} attempts")
}

/// Starts at a place that differs from process to process and walks through the range.
fn candidate(attempt: usize) -> u16 {
    const FIRST: usize = 20_000;
    const COUNT: usize = 12_000;
    let start = std::process::id() as usize * 37;
    u16::try_from(FIRST + (start + attempt) % COUNT).expect("below 32000")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_each_port_once() {
        let ports: Vec<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        let distinct: BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!(distinct.len(), ports.len());
    }
}
