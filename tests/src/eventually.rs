//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Asks again and again, with growing pauses, until `probe` answers `Ok`.
///
/// # Errors
/// `deadline` has passed: says what was waited for and the last reason `probe` gave.
pub fn eventually<T, E: std::fmt::Display>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let reason = match probe() {
            Ok(value) => return Ok(value),
            Err(reason) => reason,
        };
        if started.elapsed() >= deadline {
            anyhow::bail!("not within {deadline:?}: {what}: {reason:#}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Like [`eventually`], for a plain condition.
///
/// # Errors
/// `deadline` has passed.
pub fn eventually_true(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    eventually(what, deadline, || if condition() { Ok(()) } else { Err("still false") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_as_soon_as_the_condition_holds() {
        let mut calls = 0;
        let value = eventually("third call", Duration::from_secs(5), || {
            calls += 1;
            if calls == 3 { Ok(calls) } else { Err("not yet") }
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn names_what_was_waited_for_and_the_last_reason() {
        let result: anyhow::Result<()> =
            eventually("a row", Duration::ZERO, || Err("the table is empty"));
        assert_eq!(result.unwrap_err().to_string(), "not within 0ns: a row: the table is empty");
    }
}
