use proptest::prelude::*;

use super::*;

fn module() -> HubIdentity {
    let module = Some("vibration".to_owned());
    HubIdentity::new("contoso.azure-devices.net", "gw-07", module).expect("valid names")
}

fn device() -> HubIdentity {
    HubIdentity { module_id: None, ..module() }
}

#[test]
fn module_and_device_name_themselves_as_a_hub_expects() {
    let (module, device) = (module(), device());
    assert_eq!(module.client_id(), "gw-07/vibration");
    assert_eq!(device.client_id(), "gw-07");
    assert_eq!(
        module.user_name("edge-module 0.1/x"),
        "contoso.azure-devices.net/gw-07/vibration/?api-version=2021-04-12&DeviceClientType=edge-module%200.1%2Fx"
    );
    assert_eq!(
        device.user_name("edge"),
        "contoso.azure-devices.net/gw-07/?api-version=2021-04-12&DeviceClientType=edge"
    );
    assert_eq!(module.topic_base(), "devices/gw-07/modules/vibration");
    assert_eq!(device.topic_base(), "devices/gw-07");
}

#[test]
fn signature_is_over_the_encoded_resource() {
    let resource = module().resource();
    assert_eq!(resource, "contoso.azure-devices.net%2Fdevices%2Fgw-07%2Fmodules%2Fvibration");
    assert_eq!(device().resource(), "contoso.azure-devices.net%2Fdevices%2Fgw-07");
    let odd = HubIdentity { device_id: "a%b:c".to_owned(), ..device() };
    assert_eq!(odd.resource(), "contoso.azure-devices.net%2Fdevices%2Fa%25b%3Ac");
    assert_eq!(string_to_sign("hub%2Fdevices%2Fd", 1_700_000_000), "hub%2Fdevices%2Fd\n1700000000");
    assert_eq!(
        shared_access_signature("hub%2Fdevices%2Fd", "a+b/c=", 1_700_000_000),
        "SharedAccessSignature sr=hub%2Fdevices%2Fd&sig=a%2Bb%2Fc%3D&se=1700000000"
    );
}

#[test]
fn names_are_what_azure_allows_and_mqtt_carries() {
    let check = |host: &str, device: &str, module: Option<&str>| {
        HubIdentity::new(host, device, module.map(str::to_owned)).err()
    };
    let long = "d".repeat(ID_BYTES_MAX);
    assert_eq!(check("hub.example", "aZ0-.%_*?!(),:=@$'", Some("$edgeAgent")), None);
    assert_eq!(check("hub.example", &long, Some(&long)), None);
    assert_eq!(check("", "d", None), Some(HubIdentityError::Empty { what: "host name" }));
    assert_eq!(check("h", "", None), Some(HubIdentityError::Empty { what: "device id" }));
    assert_eq!(check("h", "d", Some("")), Some(HubIdentityError::Empty { what: "module id" }));
    let too_long = check("h", &format!("{long}d"), None);
    let (bytes, bytes_max) = (129, 128);
    assert_eq!(too_long, Some(HubIdentityError::TooLong { what: "device id", bytes, bytes_max }));
    for id in ["a/b", "a b", "a+b", "a;b", "a\n", "ä", "a\"b"] {
        let error = check("h", "d", Some(id)).expect(id).to_string();
        assert!(error.starts_with("module id of the hub link holds '"), "{error}");
        assert!(error.contains("copy it from the IoT hub"), "{error}");
    }
    assert_eq!(check("h", "a#", None), Some(HubIdentityError::Wildcard { what: "device id" }));
    assert!(check("h:8883", "d", None).is_some());
    assert!(check("h/x", "d", None).is_some());
}

#[test]
fn connection_string_is_read_in_any_order() {
    let text = " SharedAccessKey=a2V5=x==;DeviceId=gw;hostname=hub.example;Future=1;;ModuleId=m;GatewayHostName=gw.local;\n";
    let read = ConnectionString::parse(text).expect("valid");
    let expected = ConnectionString {
        host_name: "hub.example".to_owned(),
        gateway_host_name: Some("gw.local".to_owned()),
        device_id: "gw".to_owned(),
        module_id: Some("m".to_owned()),
        shared_access_key: Some("a2V5=x==".to_owned()),
        is_x509: false,
    };
    assert_eq!(read, expected);
    assert_eq!(read.identity().expect("valid").client_id(), "gw/m");
    let read = ConnectionString::parse("HostName=h;DeviceId=d;x509=True").expect("valid");
    assert!(read.is_x509 && read.shared_access_key.is_none());
}

#[test]
fn connection_string_with_a_fault_says_which() {
    let check = |text: &str, expected: ConnectionStringError| {
        assert_eq!(ConnectionString::parse(text), Err(expected), "{text}");
    };
    check("", ConnectionStringError::Missing("SharedAccessKey"));
    check("DeviceId=d;SharedAccessKey=s", ConnectionStringError::Missing("HostName"));
    check("HostName=h;SharedAccessKey=s", ConnectionStringError::Missing("DeviceId"));
    check("HostName=h;DeviceId= ;SharedAccessKey=s", ConnectionStringError::Missing("DeviceId"));
    check("HostName=h;DeviceId=d", ConnectionStringError::Missing("SharedAccessKey"));
    check(
        "HostName=h;DeviceId=d;SharedAccessKey=s;deviceid=e",
        ConnectionStringError::Twice("DeviceId"),
    );
    check(
        "HostName=h;DeviceId=d;SharedAccessKey=s;SharedAccessKey=s",
        ConnectionStringError::Twice("SharedAccessKey"),
    );
    check("HostName=h;DeviceId=d;secret", ConnectionStringError::NoPair(3));
    check("HostName=h;DeviceId=d;x509=yes", ConnectionStringError::X509);
    check("HostName=h;DeviceId=d;SharedAccessKey=s;x509=true", ConnectionStringError::KeyAndX509);
    let long = format!("HostName=h;DeviceId=d;SharedAccessKey={}", "s".repeat(4096));
    check(&long, ConnectionStringError::TooLong(long.len()));
}

#[test]
fn key_is_never_shown() {
    let read =
        ConnectionString::parse("HostName=h;DeviceId=d;SharedAccessKey=hush").expect("valid");
    let shown = format!("{read:?}");
    assert!(!shown.contains("hush") && shown.contains("***"), "{shown}");
}

proptest! {
    #[test]
    fn no_fault_shows_the_key(
        before in "((HostName=h|DeviceId=d|x509=true|[a-z=]{0,6});){0,4}",
        after in "(;(HostName=h|DeviceId=d|SharedAccessKey=|[a-z=]{0,6})){0,4}",
    ) {
        let text = format!("{before}SharedAccessKey=T0pS3cret{after}");
        let shown = match ConnectionString::parse(&text) {
            Ok(read) => format!("{read:?}"),
            Err(error) => format!("{error:?} {error}"),
        };
        prop_assert!(!shown.contains("T0pS3cret"), "{}", shown);
    }
}
