//! Devices that show a certificate, and registrations.

use super::*;

const REGISTRATIONS: &str = "$dps/registrations/res/#";
const REGISTER: &str = "$dps/registrations/PUT/iotdps-register/?$rid=1";
const DAY: Duration = Duration::from_secs(86_400);

fn with_proof(device_proof: DeviceProof) -> HubStandIn {
    HubStandIn::start(HubSettings { device_proof, ..HubSettings::default() }).unwrap()
}

fn connect_as(client_id: &str, username: &str, password: &str) -> Connect {
    let mut connect = Connect::new(client_id);
    connect.keep_alive = 60;
    let (username, password) = (username.to_owned(), password.to_owned());
    connect.login = Some(Login { username, password });
    connect
}

fn device(password: &str) -> Connect {
    connect_as("gateway-1", "hub.example/gateway-1/?api-version=2021-04-12", password)
}

fn registration(password: &str) -> Connect {
    let user_name = "0ne00000001/registrations/gateway-1/api-version=2019-03-31";
    connect_as("gateway-1", user_name, password)
}

fn registration_token(hub: &HubStandIn, key_name: &str) -> String {
    let (resource, expires) = (encode("0ne00000001/registrations/gateway-1"), unix_seconds() + 60);
    let [key, _] = hub.shared.keys_of(Peer::Registration);
    let signature = STANDARD.encode(sign(key, format!("{resource}\n{expires}").as_bytes()));
    let signature = encode(&signature);
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires}{key_name}")
}

/// Status in the topic, and body.
async fn ask(client: &mut Client, topic: &str) -> (String, Value) {
    client.publish(topic, 1, "{}").await;
    loop {
        match client.next().await {
            Some(Packet::Publish(answer)) => {
                let status = answer.topic.trim_start_matches("$dps/registrations/res/").to_owned();
                return (status, serde_json::from_slice(&answer.payload).unwrap());
            }
            Some(Packet::PubAck(_)) => {}
            other => panic!("{other:?} instead of an answer"),
        }
    }
}

async fn registering(hub: &HubStandIn) -> Client {
    let token = registration_token(hub, "&skn=registration");
    let (mut client, answer) = Client::login(hub, registration(&token)).await.unwrap();
    assert_eq!(code(&answer), ConnectReturnCode::Success, "{:?}", hub.refusals());
    client.subscribe(REGISTRATIONS).await;
    client
}

fn status_topic(told: &Value) -> String {
    let operation = told["operationId"].as_str().unwrap();
    format!(
        "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId={}",
        encode(operation)
    )
}

#[tokio::test]
async fn a_device_with_a_certificate_shows_one_that_is_its_own_and_holds() {
    for proof in [DeviceProof::Thumbprint, DeviceProof::Authority] {
        let hub = with_proof(proof);
        let right = hub.device_certificate(DAY);
        let refused = async |certificate: Option<&DeviceCertificate>, password: &str, why: &str| {
            let connect = device(password);
            let (_, answer) = Client::login_with(&hub, certificate, connect).await.unwrap();
            assert_eq!(code(&answer), ConnectReturnCode::NotAuthorized, "{proof:?} {why}");
            refused(&hub, why);
        };
        for connect in [device(""), registration("")] {
            let (_, answer) = Client::login_with(&hub, Some(&right), connect).await.unwrap();
            assert_eq!(code(&answer), ConnectReturnCode::Success, "{:?}", hub.refusals());
        }
        refused(None, "", "no certificate").await;
        refused(Some(&right), "x", "a password of a device with a certificate").await;
        let foreign = with_proof(proof).device_certificate(DAY);
        let why = match proof {
            // Of the same name, with another key.
            DeviceProof::Authority => "invalid peer certificate: BadSignature",
            DeviceProof::Key | DeviceProof::Thumbprint => {
                "a certificate with a thumbprint that nobody has registered"
            }
        };
        refused(Some(&foreign), "", why).await;
        hub.shift_clock(2 * 86_400);
        let (_, answer) = Client::login_with(&hub, Some(&right), device("")).await.unwrap();
        assert_eq!(code(&answer), ConnectReturnCode::NotAuthorized, "it has ended");
        hub.shift_clock(0);
        hub.forget_certificates();
        let why = "a certificate with a thumbprint that nobody has registered";
        refused(Some(&right), "", why).await;
    }
}

#[tokio::test]
async fn of_two_thumbprints_both_are_taken_and_a_third_replaces_the_first() {
    let hub = with_proof(DeviceProof::Thumbprint);
    let certificates: Vec<_> = (0..3).map(|_| hub.device_certificate(DAY)).collect();
    for (certificate, is_taken) in certificates.iter().zip([false, true, true]) {
        let (_, answer) = Client::login_with(&hub, Some(certificate), device("")).await.unwrap();
        assert_eq!(code(&answer) == ConnectReturnCode::Success, is_taken);
    }
}

#[tokio::test]
async fn a_registration_shows_a_token_with_the_name_of_its_key_or_without_one() {
    let hub = start();
    for (key_name, expected) in [
        ("&skn=owner", ConnectReturnCode::NotAuthorized),
        ("", ConnectReturnCode::Success),
        ("&skn=registration", ConnectReturnCode::Success),
    ] {
        let connect = registration(&registration_token(&hub, key_name));
        let (_, answer) = Client::login(&hub, connect).await.unwrap();
        assert_eq!(code(&answer), expected, "{key_name}");
    }
    refused(&hub, "a token by the key owner");
}

#[tokio::test]
async fn a_registration_is_decided_after_as_many_questions_as_were_set() {
    let hub = HubStandIn::start(HubSettings { provisioning_polls: 3, ..HubSettings::default() });
    let hub = hub.unwrap();
    hub.assign("other.example");
    let mut client = registering(&hub).await;
    let (head, told) = ask(&mut client, REGISTER).await;
    assert_eq!(head, "202/?$rid=1&retry-after=3");
    let topic = status_topic(&told);
    for _ in 0..2 {
        let (head, told) = ask(&mut client, &topic).await;
        assert_eq!(
            (head.as_str(), &told["status"]),
            ("202/?$rid=2&retry-after=3", &json!("assigning"))
        );
    }
    let (head, told) = ask(&mut client, &topic).await;
    assert_eq!(head, "200/?$rid=2");
    let state = &told["registrationState"];
    assert_eq!(
        (&state["assignedHub"], &state["deviceId"]),
        (&json!("other.example"), &json!("gateway-1"))
    );
    let (head, _) = ask(&mut client, &status_topic(&json!({ "operationId": "5.x" }))).await;
    assert_eq!(head, "404/?$rid=2");
    assert_eq!(hub.registrations(), 1);
}

#[tokio::test]
async fn each_fault_of_registrations_does_what_it_says() {
    let hub = start();
    let mut client = registering(&hub).await;
    hub.shift_clock(784_111_777 - unix_seconds());
    hub.registration_fault(RegistrationFault::Status(429, 2));
    for _ in 0..2 {
        let (head, told) = ask(&mut client, REGISTER).await;
        assert_eq!(head, "429/?$rid=1&retry-after=3");
        assert_eq!(told["errorCode"], 429_000);
        assert!(told["timestampUtc"].as_str().unwrap().starts_with("1994-11-06T08:49"), "{told}");
    }
    let (head, told) = ask(&mut client, REGISTER).await;
    assert_eq!(head, "202/?$rid=1&retry-after=3", "two times are over");
    let topic = status_topic(&told);
    hub.registration_fault(RegistrationFault::Status(401, 1));
    assert_eq!(ask(&mut client, &topic).await.0, "401/?$rid=2");
    for (fault, status) in [
        (RegistrationFault::Failed, "failed"),
        (RegistrationFault::Disabled, "disabled"),
        (RegistrationFault::Unassigned, "unassigned"),
    ] {
        hub.registration_fault(fault);
        let (head, told) = ask(&mut client, &topic).await;
        assert_eq!((head.as_str(), &told["status"]), ("200/?$rid=2", &json!(status)));
        assert!(told["registrationState"]["assignedHub"].is_null(), "{told}");
    }
    hub.registration_fault(RegistrationFault::NoAnswer);
    client.publish(REGISTER, 7, "{}").await;
    while client.acknowledged().await != 7 {}
    assert!(client.is_silent().await);
    hub.heal();
    assert_eq!(ask(&mut client, &topic).await.1["status"], "assigned");
}

#[tokio::test]
async fn who_speaks_http_is_told_the_servers_time() {
    let hub = start();
    hub.shift_clock(600);
    let mut client = Client::dial(&hub).await.unwrap();
    client.stream.write_all(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let reading = client.stream.read_to_string(&mut answer);
    tokio::time::timeout(DEADLINE, reading).await.unwrap().unwrap();
    let dates: Vec<String> =
        (0..60).map(|ago| super::super::dates::http_date(unix_seconds() + 600 - ago)).collect();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(dates.iter().any(|date| answer.contains(&format!("\r\nDate: {date}\r\n"))), "{answer}");
}
