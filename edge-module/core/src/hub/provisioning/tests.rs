use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const LIMITS: RegistrationLimits =
    RegistrationLimits { answer_max: Duration::from_secs(10), whole_max: Duration::from_secs(60) };

#[expect(clippy::disallowed_methods, reason = "a first instant has to come from somewhere")]
fn moment() -> Instant {
    Instant::now()
}

fn registration() -> Registration {
    Registration::new("0ne00000001", "Gateway-7").expect("valid names")
}

fn after(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One that has asked its first question.
fn asked(now: Instant) -> Registering {
    let mut registering = Registering::new(&registration(), LIMITS, now);
    let request = registering.poll(now).expect("the first question");
    assert_eq!(request.topic, "$dps/registrations/PUT/iotdps-register/?$rid=1");
    assert_eq!(request.body, r#"{"registrationId":"Gateway-7"}"#);
    registering
}

fn answer(
    registering: &mut Registering,
    head: &str,
    body: &Value,
    now: Instant,
) -> Result<Option<Assignment>, RegistrationError> {
    let topic = format!("$dps/registrations/res/{head}");
    registering.handle_answer(&topic, body.to_string().as_bytes(), now)
}

/// What the first question's answer leads to.
fn first(head: &str, body: &Value) -> Result<Option<Assignment>, RegistrationError> {
    let now = moment();
    answer(&mut asked(now), head, body, now)
}

fn assigned() -> Value {
    let state = json!({
        "assignedHub": "contoso.azure-devices.net", "deviceId": "gw-07", "status": "assigned",
    });
    json!({ "operationId": "5.a", "status": "assigned", "registrationState": state })
}

fn gateway_7() -> Assignment {
    Assignment { hub_host: "contoso.azure-devices.net".to_owned(), device_id: "gw-07".to_owned() }
}

#[test]
fn a_registration_names_itself_as_the_service_expects() {
    let registration = registration();
    assert_eq!(registration.client_id(), "Gateway-7");
    assert_eq!(
        registration.user_name("edge 1"),
        "0ne00000001/registrations/Gateway-7/api-version=2019-03-31&ClientVersion=edge%201"
    );
    assert_eq!(registration.resource(), "0ne00000001%2Fregistrations%2FGateway-7");
    assert_eq!(
        registration_signature("s%2Fregistrations%2Fr", "a+b=", 7),
        "SharedAccessSignature sr=s%2Fregistrations%2Fr&sig=a%2Bb%3D&se=7&skn=registration"
    );
    for (scope, id) in [("", "a"), ("0ne/1", "a"), ("0ne", ""), ("0ne", "a b"), ("0ne", "a/b")] {
        assert!(Registration::new(scope, id).is_err(), "{scope} {id}");
    }
    let longest = "a".repeat(REGISTRATION_ID_BYTES_MAX);
    assert!(Registration::new("0ne", longest.clone()).is_ok());
    assert!(Registration::new("0ne", longest + "a").is_err());
}

#[test]
fn a_device_is_assigned_after_as_many_questions_as_it_takes() {
    let start = moment();
    let mut registering = asked(start);
    let body = json!({ "operationId": "5.a&b", "status": "assigning" });
    let told = answer(&mut registering, "202/?$rid=1&retry-after=3", &body, start);
    assert_eq!(told, Ok(None));
    assert_eq!(registering.poll_timeout(), start + after(3));
    assert_eq!(registering.poll(start + after(2)), None);
    let status = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId=5.a%26b";
    let request = registering.poll(start + after(3)).expect("due");
    assert_eq!((request.topic.as_str(), request.body.as_str()), (status, ""));
    // Without a wait and an operation of its own: the usual wait, and the same operation.
    let body = json!({ "status": "assigning" });
    let now = start + after(4);
    assert_eq!(answer(&mut registering, "202/?$rid=2", &body, now), Ok(None));
    assert_eq!(registering.poll_timeout(), now + RETRY_AFTER_DEFAULT);
    let request = registering.poll(now + RETRY_AFTER_DEFAULT).expect("due");
    assert_eq!(request.topic, status.replace("rid=2", "rid=3"));
    let told = answer(&mut registering, "200/?$rid=3", &assigned(), now + after(3));
    assert_eq!(told, Ok(Some(gateway_7())));
}

#[test]
fn each_refusal_names_its_remedy() {
    let check = |head: &str, body: Value, words: &[&str]| {
        let error = first(head, &body).expect_err("refused").to_string();
        for word in words {
            assert!(error.contains(word), "{error} has no {word}");
        }
    };
    let unauthorized = json!({ "errorCode": 401_002, "message": "Unauthorized" });
    check("401/?$rid=1", unauthorized, &["401 (401002: Unauthorized)", "id-scope", "the clock"]);
    check("403/?$rid=1", json!({}), &["403:", "certificate"]);
    check("404/?$rid=1", json!({ "errorCode": 404_204 }), &["404 (404204)", "create an enrolment"]);
    check("409/?$rid=1", json!({ "message": "conflict" }), &["409 (conflict)"]);
    let state = json!({ "errorCode": 400_207, "errorMessage": "no hub", "status": "failed" });
    let failed = json!({ "status": "failed", "registrationState": state });
    check("200/?$rid=1", failed, &["(400207: no hub)", "allocation policy"]);
    check("200/?$rid=1", json!({ "status": "disabled" }), &["disabled", "enable it"]);
    check(
        "200/?$rid=1",
        json!({ "status": "unassigned" }),
        &["unassigned", "create its enrolment"],
    );
    check("200/?$rid=1", json!({ "status": "assigning" }), &["operationId"]);
    check("200/?$rid=1", json!({ "status": "merry" }), &["merry"]);
    check("200/?$rid=1", json!({ "status": "assigned" }), &["assignedHub"]);
    check("200/?$rid=1", json!([]), &["something else"]);
    check("200/", json!({}), &["topic $dps/registrations/res/200/"]);
    let state = json!({ "assignedHub": "hub/1", "deviceId": "d" });
    let odd = json!({ "status": "assigned", "registrationState": state });
    check("200/?$rid=1", odd, &["'/'"]);
}

#[test]
fn later_means_the_same_question_again_but_not_for_ever() {
    for (status, words) in [(429, "429"), (503, "503")] {
        let mut now = moment();
        let mut registering = asked(now);
        for delay in 1..=DELAYS_MAX {
            let head = format!("{status}/?$rid={delay}&retry-after=4");
            assert_eq!(answer(&mut registering, &head, &json!({}), now), Ok(None));
            now += after(4);
            let request = registering.poll(now).expect("again");
            assert!(request.topic.contains("iotdps-register"), "{request:?}");
        }
        let head = format!("{status}/?$rid={}&retry-after=4", DELAYS_MAX + 1);
        let error = answer(&mut registering, &head, &json!({}), now).expect_err("too often");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.retry_after(), Some(after(4)));
    }
    // Longer than the whole may take: told at once, and when it may be asked again, within reason.
    let error = first("429/?$rid=1&retry-after=600", &json!({})).expect_err("too long");
    assert_eq!(error.retry_after(), Some(after(600)));
    let error = first("429/?$rid=1&retry-after=99999999", &json!({})).expect_err("too long");
    assert_eq!(error.retry_after(), Some(RETRY_AFTER_MAX));
}

#[test]
fn silence_and_indecision_end() {
    let start = moment();
    let mut registering = asked(start);
    assert_eq!(registering.poll_timeout(), start + LIMITS.answer_max);
    assert_eq!(registering.handle_timeout(start + after(9)), Ok(()));
    let silent = Err(RegistrationError::Silent(LIMITS.answer_max));
    assert_eq!(registering.handle_timeout(start + after(10)), silent);
    let body = json!({ "operationId": "5.a", "status": "assigning" });
    let head = "202/?$rid=1&retry-after=90";
    assert_eq!(answer(&mut registering, head, &body, start), Ok(None));
    assert_eq!(registering.poll_timeout(), start + LIMITS.whole_max);
    assert_eq!(registering.handle_timeout(start + after(59)), Ok(()));
    let undecided = Err(RegistrationError::Undecided(LIMITS.whole_max));
    assert_eq!(registering.handle_timeout(start + after(60)), undecided);
}

#[test]
fn answers_to_other_questions_are_passed_over() {
    let now = moment();
    let mut registering = asked(now);
    assert_eq!(answer(&mut registering, "401/?$rid=7", &json!({}), now), Ok(None));
    let assigning = json!({ "operationId": "5.a", "status": "assigning" });
    assert_eq!(answer(&mut registering, "202/?$rid=1", &assigning, now), Ok(None));
    // Delivered twice: it is not the question any more.
    assert_eq!(answer(&mut registering, "200/?$rid=1", &assigned(), now), Ok(None));
}

#[test]
fn the_services_clock_is_known_from_its_refusals() {
    let now = moment();
    let mut registering = asked(now);
    assert_eq!(registering.told_time(), None);
    let body = json!({ "errorCode": 401_002, "timestampUtc": "2026-01-02T03:04:05.6789Z" });
    assert!(answer(&mut registering, "401/?$rid=1", &body, now).is_err());
    assert_eq!(registering.told_time(), Some("2026-01-02T03:04:05.6789Z"));
}

proptest! {
    #[test]
    fn no_answer_makes_the_reader_fail(
        topic in "(\\$dps/registrations/res/)?[0-9]{0,6}/\\?(\\$rid=1)?(&retry-after=[0-9a]{0,22})?",
        body in any::<Vec<u8>>(),
    ) {
        let now = moment();
        drop(asked(now).handle_answer(&topic, &body, now));
    }
}
