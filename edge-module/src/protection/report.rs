//! What the stop path tells people: a log line, a metric and a machine event for each decision that is no stop command.

use std::time::Duration;

use edge_core::interlock::{
    MachineState, ResetDone, ResetRefused, SensorFaultKind, ShelvedRule, Suppression, TripCause,
    UnshelvedBy,
};
use shared_proto::model::{
    MachineEvent, MachineEventDetails, MachineEventType, MachineId, MetricType, SensorId,
};
use tracing::{error, info, warn};

use super::Protection;
use crate::telemetry;

impl Protection {
    pub(super) fn tell_not_confirmed(
        &mut self,
        machine_id: &MachineId,
        trip_id: String,
        attempts: u32,
        is_escalated: bool,
        after: Duration,
    ) {
        error!(%machine_id, trip_id, attempts, is_escalated, after_ms = after.as_millis() as u64, "stop not confirmed: stop the machine by hand");
        metrics::counter!(telemetry::INTERLOCK_STOPS_NOT_CONFIRMED).increment(1);
        let details = MachineEventDetails {
            cause: Some("no-read-back".to_owned()),
            detail: Some(format!(
                "trip {trip_id}, ordered {attempts} times, escalated {is_escalated}"
            )),
            trip_id: Some(trip_id),
            ..MachineEventDetails::default()
        };
        self.report(machine_id, MachineEventType::StopNotConfirmed, details);
    }

    pub(super) fn tell_moved(
        &mut self,
        machine_id: &MachineId,
        trip_id: String,
        state: MachineState,
    ) {
        let state = state.as_str();
        error!(%machine_id, trip_id, state, "machine moves although its trip is latched; stop ordered again");
        let details = MachineEventDetails {
            cause: Some("moved-while-tripped".to_owned()),
            detail: Some(format!("trip {trip_id}, machine reports {state}")),
            trip_id: Some(trip_id),
            ..MachineEventDetails::default()
        };
        self.report(machine_id, MachineEventType::MovedWhileTripped, details);
    }

    pub(super) fn tell_sensor(
        &mut self,
        machine_id: &MachineId,
        sensor: SensorId,
        kind: SensorFaultKind,
        is_present: bool,
    ) {
        let kind = kind.as_str();
        let event_type = if is_present {
            warn!(%machine_id, %sensor, kind, "sensor fault");
            metrics::counter!(telemetry::SENSOR_FAULTS, "kind" => kind).increment(1);
            MachineEventType::SensorFault
        } else {
            info!(%machine_id, %sensor, kind, "sensor recovered");
            MachineEventType::SensorRecovered
        };
        let details = MachineEventDetails {
            cause: Some(kind.to_owned()),
            sensor_id: Some(sensor),
            ..MachineEventDetails::default()
        };
        self.report(machine_id, event_type, details);
    }

    pub(super) fn tell_alarm(
        &mut self,
        machine_id: &MachineId,
        cause: &TripCause,
        is_raised: bool,
    ) {
        let (rule, details) = (cause.rule(), cause_details(cause));
        if is_raised {
            warn!(%machine_id, rule, ?cause, "alarm");
            metrics::counter!(telemetry::INTERLOCK_ALARMS, "cause" => cause.as_str()).increment(1);
            self.report(machine_id, MachineEventType::Alarm, details);
        } else {
            info!(%machine_id, rule, "alarm cleared");
            self.report(machine_id, MachineEventType::AlarmCleared, details);
        }
    }

    pub(super) fn tell_suppressed(
        &mut self,
        machine_id: &MachineId,
        cause: &TripCause,
        by: Suppression,
    ) {
        let reason = by.as_str();
        warn!(%machine_id, rule = cause.rule(), reason, ?cause, "trip suppressed: the machine is not stopped");
        metrics::counter!(telemetry::INTERLOCK_SUPPRESSED, "reason" => reason).increment(1);
        let mut details = cause_details(cause);
        let more = details.detail.take().map_or_else(String::new, |detail| format!(", {detail}"));
        details.detail = Some(format!("suppressed: {reason}{more}"));
        self.report(machine_id, MachineEventType::TripSuppressed, details);
    }

    pub(super) fn tell_shelved(&mut self, machine_id: &MachineId, shelved: ShelvedRule) {
        let ShelvedRule { rule, operator, reason, until, .. } = shelved;
        warn!(%machine_id, rule, operator, reason, %until, "rule shelved");
        let details = MachineEventDetails {
            cause: Some("operator".to_owned()),
            rule: Some(rule),
            detail: Some(format!("until {until}: {reason}")),
            operator: Some(operator),
            ..MachineEventDetails::default()
        };
        self.report(machine_id, MachineEventType::Shelved, details);
    }

    /// Names who put the rule in force; after an expiry, who had taken it out.
    pub(super) fn tell_unshelved(
        &mut self,
        machine_id: &MachineId,
        shelved: ShelvedRule,
        by: UnshelvedBy,
        operator: Option<String>,
    ) {
        let ShelvedRule { rule, operator: shelver, since, until, .. } = shelved;
        info!(%machine_id, rule, by = by.as_str(), operator, "rule in force again");
        let details = MachineEventDetails {
            cause: Some(by.as_str().to_owned()),
            rule: Some(rule),
            detail: Some(format!("shelved by {shelver} from {since} until {until}")),
            operator: Some(operator.unwrap_or(shelver)),
            ..MachineEventDetails::default()
        };
        self.report(machine_id, MachineEventType::Unshelved, details);
    }

    pub(super) fn tell_reset(&mut self, machine_id: &MachineId, operator: &str, done: ResetDone) {
        info!(%machine_id, operator, trip_id = done.trip_id, "interlock reset");
        let details = MachineEventDetails {
            detail: Some(format!("operator {operator}")),
            operator: Some(operator.to_owned()),
            trip_id: Some(done.trip_id),
            ..cause_details(&done.cause)
        };
        self.report(machine_id, MachineEventType::Reset, details);
    }

    pub(super) fn tell_reset_refused(
        &mut self,
        machine_id: &MachineId,
        operator: &str,
        refusal: &ResetRefused,
    ) {
        warn!(%machine_id, operator, reason = %refusal, "reset refused");
        let trip_id = self.interlocks.get(machine_id).and_then(|interlock| interlock.trip_id());
        let mut details = MachineEventDetails {
            cause: Some(refusal.as_str().to_owned()),
            detail: Some(format!("operator {operator}: {refusal}")),
            operator: Some(operator.to_owned()),
            trip_id: trip_id.map(str::to_owned),
            ..MachineEventDetails::default()
        };
        match refusal {
            ResetRefused::LimitPresent { rule, sensor, value, limit, .. } => {
                details.rule = Some(rule.clone());
                details.sensor_id = Some(sensor.clone());
                details.value = Some(*value);
                details.limit = Some(*limit);
            }
            ResetRefused::VotesPresent { sensor, .. }
            | ResetRefused::SensorSilent { sensor }
            | ResetRefused::SensorFaulty { sensor, .. } => {
                details.rule = Some(refusal.as_str().to_owned());
                details.sensor_id = Some(sensor.clone());
            }
            ResetRefused::NotTripped { .. } | ResetRefused::StopNotConfirmed { .. } => {}
        }
        self.report(machine_id, MachineEventType::ResetRefused, details);
    }

    pub(super) fn report(
        &mut self,
        machine_id: &MachineId,
        event_type: MachineEventType,
        details: MachineEventDetails,
    ) {
        let event = self.event(machine_id, event_type, details);
        if event_type == MachineEventType::Alarm {
            let alarm_id = format!("{machine_id}-{}-alarm", event.timestamp.micros());
            self.ask_for_snapshot(machine_id, &alarm_id, None, true);
        }
        self.waiting_events.push_back(event);
    }

    /// An event of a machine, with the version of its rules.
    pub(super) fn event(
        &self,
        machine_id: &MachineId,
        event_type: MachineEventType,
        details: MachineEventDetails,
    ) -> MachineEvent {
        let interlock = self.interlocks.get(machine_id);
        let rule_version = interlock.map(|interlock| interlock.rule_version().to_owned());
        let details = MachineEventDetails { rule_version, ..details };
        crate::journal::event_of_now(machine_id.clone(), event_type, details)
    }
}

/// The fields of a machine event that say why.
pub(super) fn cause_details(cause: &TripCause) -> MachineEventDetails {
    let mut details = MachineEventDetails {
        cause: Some(cause.as_str().to_owned()),
        rule: Some(cause.rule().to_owned()),
        sensor_id: cause.sensor().cloned(),
        ..MachineEventDetails::default()
    };
    match cause {
        TripCause::Limit { value, limit, .. } => {
            details.value = Some(*value);
            details.limit = Some(*limit);
        }
        TripCause::Score { score, threshold, votes, .. } => {
            details.metric_type = MetricType::new("vibration").ok();
            details.score = Some(*score);
            details.limit = Some(*threshold);
            details.detail = Some(format!("{votes} votes"));
        }
        TripCause::Silence { limit_ms, .. } => {
            details.detail = Some(format!("silent for {limit_ms} ms"));
        }
        TripCause::SensorFault { fault, .. } => {
            details.detail = Some(format!("sensor fault {}", fault.as_str()));
        }
        TripCause::UnknownLatch | TripCause::Restart => {}
        TripCause::Ordered { operator, reason } => {
            details.operator = Some(operator.clone());
            details.detail = Some(reason.clone());
        }
    }
    details
}
