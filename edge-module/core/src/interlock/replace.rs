//! Other settings for a machine that is being watched.

use super::limit::Limit;
use super::{Action, Interlock, Moment, UnshelvedBy, Watched};

impl Interlock {
    /// Takes the place of the interlock of the same machine whose settings were others. The latch is carried over as it is:
    /// other settings never arm a machine. So are the latest values, which are judged by the new rules with the next look at
    /// the time, the conditions of sensors that are watched as before, the time since each was heard, the votes, if the
    /// threshold they were counted by still holds, and what is shelved. Answers with the rules that were shelved and are
    /// no more.
    #[must_use = "what is no longer shelved has to be reported"]
    pub fn take_over(&mut self, previous: Self, now: Moment) -> Vec<Action> {
        self.latch = previous.latch;
        self.trip_count = previous.trip_count;
        self.machine_state = previous.machine_state;
        self.startup.take_over(previous.startup);
        let is_threshold_kept = self.settings.score_vote.as_ref().map(|vote| vote.threshold)
            == previous.settings.score_vote.as_ref().map(|vote| vote.threshold);
        for (sensor, old) in previous.sensors {
            if let Some(new) = self.sensors.get_mut(&sensor) {
                carry(new, old, is_threshold_kept, now);
            }
        }
        self.shelf = previous.shelf;
        let gone = self.shelf.rules().filter(|shelved| !self.has_rule(&shelved.rule));
        let gone: Vec<String> = gone.map(|shelved| shelved.rule.clone()).collect();
        let unshelved = gone.iter().filter_map(|rule| self.shelf.unshelve(rule));
        let by = UnshelvedBy::Restart;
        let actions =
            unshelved.map(|shelved| Action::Unshelved { shelved, by, operator: None }).collect();
        // Early is allowed, late is not.
        self.wake_at = Some(now.instant);
        actions
    }
}

fn carry(new: &mut Watched, old: Watched, is_threshold_kept: bool, now: Moment) {
    let mut old_limits = old.limits;
    for limit in &mut new.limits {
        let same = old_limits.iter().position(|old| old.rule == limit.rule);
        if let Some(index) = same {
            *limit = old_limits.swap_remove(index);
        } else if let Some(latest) = old_limits
            .iter()
            .find(|old| old.rule.quantity == limit.rule.quantity)
            .and_then(Limit::latest)
        {
            limit.handle_value(latest, now.instant);
        }
    }
    if new.votes.is_some() && old.votes.is_some() && is_threshold_kept {
        new.votes = old.votes;
    }
    if new.heard.is_some() && old.heard.is_some() {
        new.heard = old.heard;
    }
    new.condition.take_over(old.condition);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shared_proto::model::{EventTime, MachineId, SensorId};

    use super::super::*;

    #[expect(clippy::disallowed_methods, reason = "a first instant has to come from somewhere")]
    fn now() -> Instant {
        Instant::now()
    }

    fn settings(above: f64, silence: Option<Duration>) -> InterlockSettings {
        InterlockSettings {
            limits: vec![LimitRule {
                name: "hot".to_owned(),
                sensor: sensor(),
                quantity: Quantity::Value,
                above: Some(above),
                below: None,
                hysteresis: 0.0,
                on_delay: Duration::ZERO,
                off_delay: Duration::ZERO,
                action: RuleAction::Trip,
                during_startup: DuringStartup::Enforce,
            }],
            score_vote: None,
            silence: Some(Silence {
                sensors: vec![sensor()],
                after: silence.unwrap_or(Duration::from_secs(60)),
                trips: silence.is_some(),
            }),
            sensors: Vec::new(),
            on_fault: RuleAction::Alarm,
            startup_suppression: Duration::ZERO,
            shelving_max: Duration::ZERO,
            dry_run: false,
            confirmation: ConfirmationSettings {
                deadline: Duration::from_secs(2),
                attempts_max: 3,
            },
            rule_version: String::new(),
        }
    }

    fn sensor() -> SensorId {
        SensorId::new("s").expect("valid")
    }

    fn at(start: Instant, seconds: u64) -> Moment {
        let time = EventTime::from_micros(seconds as i64 * 1_000_000);
        Moment { instant: start + Duration::from_secs(seconds), time }
    }

    fn interlock(start: Instant, settings: InterlockSettings) -> Interlock {
        let machine_id = MachineId::new("m").expect("valid");
        Interlock::new(machine_id, settings, start).expect("valid settings")
    }

    fn is_stop(actions: &[Action]) -> bool {
        matches!(actions.first(), Some(Action::SendStop { .. }))
    }

    #[test]
    fn a_latched_trip_stays_and_is_reset_by_the_new_limits_alone() {
        let start = now();
        let mut old = interlock(start, settings(100.0, None));
        assert!(is_stop(&old.handle_reading(&sensor(), 120.0, at(start, 1))));
        let before = old.snapshot();
        let mut new = interlock(at(start, 2).instant, settings(110.0, None));
        assert_eq!(new.take_over(old, at(start, 2)), []);
        assert_eq!(new.snapshot(), before);
        assert_eq!(new.poll_timeout().map(|at| at <= start + Duration::from_secs(3)), Some(true));
        assert_eq!(new.handle_machine_state(MachineState::Stopped, at(start, 3)).len(), 1);
        let refusal = new.reset(at(start, 4)).expect_err("120 is still above 110");
        assert_eq!(refusal.as_str(), "limit");
        let old = new;
        let mut new = interlock(start, settings(130.0, None));
        assert_eq!(new.take_over(old, at(start, 5)), []);
        assert!(new.reset(at(start, 6)).is_ok(), "the latest value is below the new limit");
        assert!(is_stop(&new.handle_reading(&sensor(), 131.0, at(start, 7))));
        assert_eq!(new.snapshot().trip_count, 2);
    }

    #[test]
    fn other_settings_do_not_count_as_a_sign_of_life() {
        let start = now();
        let mut interlock_now = interlock(start, settings(100.0, Some(Duration::from_secs(5))));
        assert!(interlock_now.handle_reading(&sensor(), 1.0, at(start, 1)).is_empty());
        for second in 2..6 {
            let mut new = interlock(
                at(start, second).instant,
                settings(100.0 + second as f64, Some(Duration::from_secs(5))),
            );
            assert_eq!(new.take_over(interlock_now, at(start, second)), []);
            assert!(new.handle_timeout(at(start, second)).is_empty(), "second {second}");
            interlock_now = new;
        }
        assert!(is_stop(&interlock_now.handle_timeout(at(start, 6))));
    }

    #[test]
    fn a_sensor_that_is_silent_already_trips_under_a_policy_that_says_so() {
        let start = now();
        let mut old = interlock(start, settings(100.0, None));
        let reported = old.handle_timeout(at(start, 61));
        assert!(matches!(reported.as_slice(), [Action::SensorFault { .. }]), "{reported:?}");
        let mut new =
            interlock(at(start, 62).instant, settings(100.0, Some(Duration::from_secs(5))));
        assert_eq!(new.take_over(old, at(start, 62)), []);
        assert!(is_stop(&new.handle_timeout(at(start, 62))));
    }
}
