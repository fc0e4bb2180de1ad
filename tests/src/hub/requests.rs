//! What becomes of the publishes of a client.

use std::collections::BTreeMap;

use rumqttc::Publish;
use serde_json::{Value, json};

use super::dates::timestamp;
use super::faults::RegistrationFault;
use super::state::{Outgoing, Shared};
use super::topics::{Bag, Channel, Request, parse};
use super::{Fault, HubMessage, Peer};

/// Of a method's answer.
const METHOD_BYTES_MAX: usize = 128 * 1024;

/// What follows from a publish.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) answer: Option<Outgoing>,
    /// The connection is to be closed, without an acknowledgement.
    pub(super) closes: Option<String>,
}

/// Takes a publish of QoS 0 or 1.
pub(super) fn take(shared: &Shared, peer: Peer, connection: u64, publish: &Publish) -> Taken {
    let Some(request) = parse(peer, &shared.settings, &publish.topic) else {
        return take_unknown(shared, peer, connection, &publish.topic);
    };
    let answer = match request {
        Request::Event(bag) => {
            take_event(shared, peer, connection, bag, publish);
            None
        }
        Request::GetTwin { rid } => get_twin(shared, peer, &rid),
        Request::Report { rid } => report(shared, peer, connection, &rid, &publish.payload),
        Request::MethodAnswer { status, rid } => {
            take_method_answer(shared, connection, &rid, status, &publish.payload);
            None
        }
        Request::Register { rid } => register(shared, &rid),
        Request::RegistrationStatus { rid, operation } => registration(shared, &rid, &operation),
    };
    Taken { answer, closes: None }
}

/// edgeHub drops what it cannot read and acknowledges it; IoT Hub closes the connection.
fn take_unknown(shared: &Shared, peer: Peer, connection: u64, topic: &str) -> Taken {
    let reason = format!("the topic {topic}");
    match peer {
        Peer::Module => {
            shared.refuse(connection, reason);
            Taken::default()
        }
        Peer::Device | Peer::Registration => Taken { answer: None, closes: Some(reason) },
    }
}

fn take_event(shared: &Shared, peer: Peer, connection: u64, bag: Bag, publish: &Publish) {
    if shared.has_fault(&Fault::PubackAndLose) {
        return;
    }
    let (mut system, mut properties): (BTreeMap<_, _>, BTreeMap<_, _>) =
        bag.into_iter().partition(|(key, _)| key.starts_with("$."));
    if publish.retain {
        properties.insert("mqtt-retain".to_owned(), "true".to_owned());
    }
    let settings = &shared.settings;
    let message = HubMessage {
        connection,
        device: settings.device_id.clone(),
        module: (peer == Peer::Module).then(|| settings.module_id.clone()),
        output: system.remove("$.on"),
        properties,
        system,
        body: publish.payload.to_vec(),
        is_duplicate: publish.dup,
    };
    shared.lock().keep_message(message);
}

/// How the answer to a twin request fails.
enum TwinFault {
    None,
    Silent,
    Status(u16),
}

fn next_twin_fault(shared: &Shared) -> TwinFault {
    if shared.has_fault(&Fault::NoTwinAnswer) {
        return TwinFault::Silent;
    }
    let mut fault = TwinFault::None;
    shared.faults.send_if_modified(|faults| {
        let Some((status, times)) = faults.twin_status else { return false };
        fault = TwinFault::Status(status);
        faults.twin_status =
            times.checked_sub(1).filter(|left| *left > 0).map(|left| (status, left));
        true
    });
    fault
}

fn twin_answer(topic: String, body: String) -> Outgoing {
    let (channel, body) = (Channel::TwinAnswers, body.into_bytes());
    Outgoing { channel, topic, body, inbox_number: None }
}

fn twin_refusal(rid: &str, status: u16, reason: &str) -> Outgoing {
    let body = json!({ "errorCode": u32::from(status) * 1000, "message": reason }).to_string();
    twin_answer(format!("$iothub/twin/res/{status}/?$rid={rid}"), body)
}

fn get_twin(shared: &Shared, peer: Peer, rid: &str) -> Option<Outgoing> {
    match next_twin_fault(shared) {
        TwinFault::Silent => None,
        TwinFault::Status(status) => Some(twin_refusal(rid, status, "throttled")),
        TwinFault::None => {
            let document = shared.lock().endpoint(peer).twin.document();
            Some(twin_answer(format!("$iothub/twin/res/200/?$rid={rid}"), document.to_string()))
        }
    }
}

/// A refusal by a fault changes nothing; an answer that is lost by one does.
fn report(
    shared: &Shared,
    peer: Peer,
    connection: u64,
    rid: &str,
    body: &[u8],
) -> Option<Outgoing> {
    let fault = next_twin_fault(shared);
    if let TwinFault::Status(status) = fault {
        return Some(twin_refusal(rid, status, "throttled"));
    }
    let reported = shared.lock().endpoint(peer).twin.report(body);
    let answer = match reported {
        Ok(version) => {
            shared.reported.send_modify(|count| *count += 1);
            // Only IoT Hub says the version.
            let version = match peer {
                Peer::Module => String::new(),
                Peer::Device | Peer::Registration => format!("&$version={version}"),
            };
            twin_answer(format!("$iothub/twin/res/204/?$rid={rid}{version}"), String::new())
        }
        Err(refused) => {
            shared.refuse(connection, refused.reason.clone());
            twin_refusal(rid, refused.status, &refused.reason)
        }
    };
    matches!(fault, TwinFault::None).then_some(answer)
}

fn take_method_answer(shared: &Shared, connection: u64, rid: &str, status: i32, body: &[u8]) {
    let answer = if body.len() > METHOD_BYTES_MAX {
        Err(format!("an answer of {} bytes", body.len()))
    } else if body.is_empty() {
        Ok((status, Value::Null))
    } else {
        serde_json::from_slice(body)
            .map(|body| (status, body))
            .map_err(|error| format!("an answer that is no JSON: {error}"))
    };
    let caller = shared.lock().calls.get(rid).cloned();
    // A caller that waits no more is the same as none.
    if caller.is_none_or(|caller| caller.try_send(answer).is_err()) {
        shared.refuse(connection, format!("an answer to the call {rid}, which nobody waits for"));
    }
}

/// The first answer of the provisioning service: wait and ask.
fn register(shared: &Shared, rid: &str) -> Option<Outgoing> {
    let operation = shared.lock().begin_operation();
    match registration_refusal(shared, rid) {
        RegistrationRefusal::None => Some(assigning(shared, rid, &operation)),
        RegistrationRefusal::Silent => None,
        RegistrationRefusal::Answer(refusal) => Some(refusal),
    }
}

fn assigning(shared: &Shared, rid: &str, operation: &str) -> Outgoing {
    let body = json!({ "operationId": operation, "status": "assigning" });
    let seconds = shared.settings.provisioning_retry_after.as_secs();
    let topic = format!("$dps/registrations/res/202/?$rid={rid}&retry-after={seconds}");
    registration_answer(topic, &body)
}

/// What a fault answers instead of anything else.
enum RegistrationRefusal {
    None,
    Silent,
    Answer(Outgoing),
}

fn registration_refusal(shared: &Shared, rid: &str) -> RegistrationRefusal {
    let mut fault = None;
    shared.faults.send_if_modified(|faults| {
        fault = faults.registration;
        let Some(RegistrationFault::Status(status, times)) = fault else { return false };
        let left = times.saturating_sub(1);
        faults.registration = (left > 0).then_some(RegistrationFault::Status(status, left));
        true
    });
    match fault {
        Some(RegistrationFault::NoAnswer) => RegistrationRefusal::Silent,
        Some(RegistrationFault::Status(status, _)) => {
            RegistrationRefusal::Answer(registration_error(shared, rid, status, "told to refuse"))
        }
        Some(
            RegistrationFault::Failed | RegistrationFault::Disabled | RegistrationFault::Unassigned,
        )
        | None => RegistrationRefusal::None,
    }
}

/// With the time, as the service tells it in refusals.
fn registration_error(shared: &Shared, rid: &str, status: u16, message: &str) -> Outgoing {
    let body = json!({
        "errorCode": u32::from(status) * 1000,
        "trackingId": "00000000-0000-0000-0000-000000000000",
        "message": message,
        "timestampUtc": timestamp(shared.now()),
    });
    let wait = match status {
        429 | 500.. => {
            format!("&retry-after={}", shared.settings.provisioning_retry_after.as_secs())
        }
        _ => String::new(),
    };
    registration_answer(format!("$dps/registrations/res/{status}/?$rid={rid}{wait}"), &body)
}

fn registration(shared: &Shared, rid: &str, operation: &str) -> Option<Outgoing> {
    match registration_refusal(shared, rid) {
        RegistrationRefusal::None => {}
        RegistrationRefusal::Silent => return None,
        RegistrationRefusal::Answer(refusal) => return Some(refusal),
    }
    let asked = {
        let mut state = shared.lock();
        state.operations.get_mut(operation).map(|asked| {
            *asked += 1;
            *asked
        })
    };
    let Some(asked) = asked else {
        return Some(registration_error(shared, rid, 404, "no such operation"));
    };
    if asked < shared.settings.provisioning_polls {
        return Some(assigning(shared, rid, operation));
    }
    let fault = shared.faults.borrow().registration;
    let (status, substatus, error) = match fault {
        Some(RegistrationFault::Failed) => ("failed", None, Some((400_207, "no hub is linked"))),
        Some(RegistrationFault::Disabled) => ("disabled", None, None),
        Some(RegistrationFault::Unassigned) => ("unassigned", None, None),
        Some(RegistrationFault::Status(..) | RegistrationFault::NoAnswer) | None => {
            ("assigned", Some("initialAssignment"), None)
        }
    };
    let mut state = json!({
        "registrationId": shared.settings.registration_id,
        "createdDateTimeUtc": "2026-01-01T00:00:00.0000000Z",
        "lastUpdatedDateTimeUtc": timestamp(shared.now()),
        "status": status,
        "etag": "IjAwMDAi",
    });
    if let Some(substatus) = substatus {
        let hub = shared.lock().assigned_hub.clone();
        state["assignedHub"] = json!(hub.unwrap_or_else(|| shared.assigned_hub.clone()));
        state["deviceId"] = json!(shared.settings.device_id);
        state["substatus"] = json!(substatus);
    }
    if let Some((code, message)) = error {
        state["errorCode"] = json!(code);
        state["errorMessage"] = json!(message);
    }
    let body = json!({ "operationId": operation, "status": status, "registrationState": state });
    Some(registration_answer(format!("$dps/registrations/res/200/?$rid={rid}"), &body))
}

fn registration_answer(topic: String, body: &Value) -> Outgoing {
    let (channel, body) = (Channel::Registrations, body.to_string().into_bytes());
    Outgoing { channel, topic, body, inbox_number: None }
}
