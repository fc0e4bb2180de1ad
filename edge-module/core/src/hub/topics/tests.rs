use proptest::prelude::*;

use super::*;

fn module() -> HubIdentity {
    HubIdentity::new("hub.example", "gw-07", Some("vibration".to_owned())).expect("valid names")
}

fn device() -> HubIdentity {
    HubIdentity::new("hub.example", "gw-07", None).expect("valid names")
}

fn properties(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn module_subscribes_to_inputs_and_device_to_its_messages() {
    let same =
        ["$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#"];
    let of_module = subscriptions(&module());
    assert_eq!(of_module[..3], same);
    assert_eq!(of_module[3..], ["devices/gw-07/modules/vibration/inputs/#"]);
    let of_device = subscriptions(&device());
    assert_eq!(of_device[..3], same);
    assert_eq!(of_device[3..], ["devices/gw-07/messages/devicebound/#"]);
}

#[test]
fn messages_tell_output_and_form() {
    assert_eq!(
        events(&module(), &[("machine", "press 1/a")], Some("alerts")),
        "devices/gw-07/modules/vibration/messages/events/machine=press%201%2Fa&%24.on=alerts\
         &%24.ct=application%2Fjson&%24.ce=utf-8"
    );
    assert_eq!(
        events(&device(), &[], Some("alerts")),
        "devices/gw-07/messages/events/%24.ct=application%2Fjson&%24.ce=utf-8",
        "a device has no outputs"
    );
    assert_eq!(
        events(&device(), &[("$.ct", "text/plain")], None),
        "devices/gw-07/messages/events/%24.ct=text%2Fplain&%24.ce=utf-8"
    );
}

#[test]
fn requests_and_answers_carry_their_id() {
    assert_eq!(get_twin(7), "$iothub/twin/GET/?$rid=7");
    assert_eq!(report(8), "$iothub/twin/PATCH/properties/reported/?$rid=8");
    assert_eq!(method_answer("a%2F1", -3), "$iothub/methods/res/-3/?$rid=a%2F1");
}

#[test]
fn incoming_topics_are_read() {
    let check = |identity: &HubIdentity, topic: &str, expected: Incoming| {
        assert_eq!(parse(identity, topic), Ok(expected), "{topic}");
    };
    let answer =
        |status, rid: &str, version| Incoming::TwinAnswer { status, rid: rid.to_owned(), version };
    let (m, d) = (module(), device());
    check(&m, "$iothub/twin/res/200/?$rid=7", answer(200, "7", None));
    check(&d, "$iothub/twin/res/204/?$rid=a-b&$version=12", answer(204, "a-b", Some(12)));
    check(&d, "$iothub/twin/res/429/?%24version=1&%24rid=%41", answer(429, "%41", Some(1)));
    let patch = Incoming::DesiredPatch { version: 5 };
    check(&m, "$iothub/twin/PATCH/properties/desired/?$version=5", patch);
    let method = Incoming::Method { name: "stop now".to_owned(), rid: "f/1".to_owned() };
    check(&m, "$iothub/methods/POST/stop%20now/?$rid=f/1", method);
    let input = |name: &str, pairs| {
        let properties = properties(pairs);
        Incoming::Input { name: name.to_owned(), properties }
    };
    let base = "devices/gw-07/modules/vibration/inputs";
    check(&m, &format!("{base}/opc"), input("opc", &[]));
    check(&m, &format!("{base}/opc/"), input("opc", &[]));
    let pairs = [("$.cdid", "gw-07"), ("a b", "")];
    check(&m, &format!("{base}/o%2Fpc/%24.cdid=gw-07&a%20b=/"), input("o/pc", &pairs));
    let pairs = [("$.to", "/devices/gw-07/messages/deviceBound"), ("p", "")];
    let sent = Incoming::CloudToDevice { properties: properties(&pairs) };
    let topic =
        "devices/gw-07/messages/devicebound/%24.to=%2Fdevices%2Fgw-07%2Fmessages%2FdeviceBound&p";
    check(&d, topic, sent);
    let sent = Incoming::CloudToDevice { properties: BTreeMap::new() };
    check(&d, "devices/gw-07/messages/devicebound/", sent);
}

#[test]
fn topics_of_others_are_unknown() {
    let (m, d) = (module(), device());
    let check = |identity: &HubIdentity, topic: &str| {
        let expected = TopicError::Unknown { topic: topic.to_owned() };
        assert_eq!(parse(identity, topic), Err(expected));
    };
    check(&m, "");
    check(&m, "$iothub/twin/GET/?$rid=1");
    check(&m, "devices/gw-07/modules/other/inputs/opc/");
    check(&m, "devices/gw-07/modules/vibration2/inputs/opc/");
    check(&m, "devices/gw-07/messages/devicebound/");
    check(&d, "devices/gw-07/modules/vibration/inputs/opc/");
    check(&d, "devices/gw-070/messages/devicebound/");
}

#[test]
fn malformed_topics_name_the_part() {
    let check = |topic: &str, what: &'static str| {
        let expected = TopicError::Malformed { topic: topic.to_owned(), what };
        assert_eq!(parse(&module(), topic), Err(expected));
    };
    check("$iothub/twin/res/", "status");
    check("$iothub/twin/res/+200/?$rid=1", "status");
    check("$iothub/twin/res/70000/?$rid=1", "status");
    check("$iothub/twin/res/200/", "$rid");
    check("$iothub/twin/res/200/?$rid=", "$rid");
    check("$iothub/twin/res/200/$rid=1", "$rid");
    check("$iothub/twin/res/204/?$rid=1&$version=x", "$version");
    check("$iothub/twin/PATCH/properties/desired/", "$version");
    check("$iothub/twin/PATCH/properties/desired/?$version=-1", "$version");
    check("$iothub/methods/POST/stop", "name");
    check("$iothub/methods/POST//?$rid=1", "name");
    check("$iothub/methods/POST/%zz/?$rid=1", "name");
    check("$iothub/methods/POST/stop/?rid=1", "$rid");
    check("devices/gw-07/modules/vibration/inputs/", "name");
    check("devices/gw-07/modules/vibration/inputs/opc/a=1=2", "properties");
    check("devices/gw-07/modules/vibration/inputs/opc/a=1/b=2", "properties");
    let long = parse(&module(), &"é".repeat(5000)).expect_err("unknown");
    assert_eq!(long, TopicError::Unknown { topic: "é".repeat(200) });
}

proptest! {
    #[test]
    fn no_topic_makes_the_reader_fail(
        before in prop::sample::select(vec![
            "", TWIN_ANSWERS, DESIRED_PATCHES, METHODS, "devices/gw-07/modules/vibration/inputs/",
        ]),
        rest in "[?$a-z0-9/=&%é]{0,24}",
    ) {
        parse(&module(), &format!("{before}{rest}")).ok();
    }
}
