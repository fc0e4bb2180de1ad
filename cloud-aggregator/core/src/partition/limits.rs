//! What is refused at a limit.

use shared_proto::model::EventTime;

use super::{Found, Track};
use crate::accounting::{Disposition, reason};
use crate::settings::Settings;
use crate::time::ProcessingTime;
use crate::window::Match;

/// Whether a timestamp is none that a sensor with a clock gives.
pub(super) fn refuse_timestamp(
    timestamp: EventTime,
    now: ProcessingTime,
    settings: &Settings,
) -> Option<Disposition> {
    let latest = now.as_event_time().saturating_add_micros(settings.future_limit.get());
    if timestamp > latest {
        return Some(Disposition::DeadLetter {
            reason: reason::TIMESTAMP_IN_FUTURE,
            detail: format!(
                "timestamp {timestamp} is more than {} ahead of the aggregator's clock: set the sensor's clock",
                settings.future_limit
            ),
        });
    }
    if timestamp < settings.oldest_event_time {
        return Some(Disposition::DeadLetter {
            reason: reason::TIMESTAMP_TOO_OLD,
            detail: format!(
                "timestamp {timestamp} is before {}: set the sensor's clock or counting.oldest-event-time",
                settings.oldest_event_time
            ),
        });
    }
    None
}

/// Whether a limit leaves no room for the windows that the matches need.
pub(super) fn refuse_windows(
    (sensor, machine): (&Track, Option<&Track>),
    found: &Found,
    held: usize,
    settings: &Settings,
) -> Option<Disposition> {
    let needed = |track: &Track, matches: &[Match]| {
        matches.iter().filter(|found| track.windows.is_new_for(**found)).count()
    };
    let of_sensor = needed(sensor, &found.by_sensor);
    let of_machine = machine.map_or(0, |machine| needed(machine, &found.by_machine));
    if of_sensor + of_machine == 0 {
        return None;
    }
    let refusal = |detail| Disposition::DeadLetter { reason: reason::WINDOWS_LIMIT, detail };
    let Settings { windows_per_sensor_max, windows_max, .. } = settings;
    let machine_windows = machine.map_or(0, |machine| machine.windows.len());
    let groups =
        [("sensor", sensor.windows.len(), of_sensor), ("machine", machine_windows, of_machine)];
    for (what, held, needed) in groups {
        if held + needed > *windows_per_sensor_max {
            return Some(refusal(format!(
                "the {what} has {held} windows, at most {windows_per_sensor_max} are held: \
                 raise counting.windows-per-sensor-max or shorten counting.closed-window-retention"
            )));
        }
    }
    if held + of_sensor + of_machine > *windows_max {
        return Some(refusal(format!(
            "the partition has {held} windows, at most {windows_max} are held: \
             raise counting.windows-max or shorten counting.closed-window-retention"
        )));
    }
    None
}
