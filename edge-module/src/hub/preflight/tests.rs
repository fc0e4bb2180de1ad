use std::fs::Permissions;

use super::*;

fn load(text: &str) -> Settings {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("edge.toml");
    std::fs::write(&file, text).expect("writing");
    Settings::load(Some(&file)).expect("valid by themselves")
}

/// As a module where IoT Edge has started it.
fn of_iot_edge(name: &str) -> Option<String> {
    let value = match name {
        "IOTEDGE_WORKLOADURI" => "unix:///run/workload.sock",
        "IOTEDGE_MODULEID" => "vibration",
        "IOTEDGE_MODULEGENERATIONID" => "1",
        "IOTEDGE_DEVICEID" => "gw-7",
        "IOTEDGE_IOTHUBHOSTNAME" => "plant.azure-devices.net",
        "IOTEDGE_GATEWAYHOSTNAME" => "edge-7",
        "IOTEDGE_APIVERSION" => "2021-12-07",
        _ => return None,
    };
    Some(value.to_owned())
}

fn found(text: &str, variable: fn(&str) -> Option<String>) -> Preflight {
    let settings = load(text);
    Preflight::of(&settings, &Access::new(&settings.iot_hub, variable))
}

fn alone(_: &str) -> Option<String> {
    None
}

#[test]
fn records_for_a_hub_need_a_link() {
    for (order, is_fault, is_end) in [
        ("[\"kafka\"]", false, false),
        ("[\"kafka\", \"hub\"]", true, false),
        ("[\"hub\"]", true, true),
    ] {
        let text = format!("[upstream]\norder = {order}\n");
        let faults = found(&text, alone).faults.concat();
        assert_eq!(faults.contains("upstream.order: names the hub"), is_fault, "{order}: {faults}");
        assert_eq!(faults.contains("set identity = \"device\""), is_fault, "{order}: {faults}");
        let end = no_way_at_all(&load(&text), alone);
        assert_eq!(end.is_some(), is_end, "{order}: {end:?}");
        assert_eq!(found(&text, of_iot_edge).faults, [""; 0], "{order}");
        assert_eq!(no_way_at_all(&load(&text), of_iot_edge), None, "{order}");
    }
    let missing = "[upstream]\norder = [\"hub\"]\n[iot-hub]\nidentity = \"module\"\n";
    let faults = found(missing, alone).faults;
    assert!(faults.len() == 1 && faults[0].contains("IOTEDGE_WORKLOADURI"), "{faults:?}");
    assert_eq!(no_way_at_all(&load(missing), alone), None, "a link that cannot be set up");
}

#[test]
fn nodes_need_a_module_and_a_machine_that_somebody_has() {
    const NODE: &str = "[[opc-publisher.nodes]]\nnode = \"i=7\"\nsensor = \"oil\"\n\
                        metric-type = \"temperature\"\nmachine = \"press-1\"\n";
    const MACHINE: &str = "[[machines]]\nid = \"press-1\"\n";
    let known = format!("{MACHINE}{NODE}");
    assert_eq!(found(&known, of_iot_edge).faults, [""; 0]);
    let faults = found(&known, alone).faults.concat();
    assert!(faults.contains("opc-publisher.nodes: nobody brings their values"), "{faults}");
    // The hub may desire the machine.
    let unknown = found(NODE, of_iot_edge);
    assert_eq!(unknown.faults, [""; 0]);
    assert!(unknown.notes.concat().contains("no [[machines]] is press-1; oil"), "{unknown:?}");
    let fixed = format!("{NODE}[iot-hub]\ndesired-keys = [\"deadband\"]\n");
    let faults = found(&fixed, of_iot_edge).faults.concat();
    assert!(faults.contains("nodes[0].machine: no [[machines]] is press-1; name it"), "{faults}");
}

#[test]
fn what_is_in_force_is_a_line_each() {
    let lines = found("", alone).lines;
    assert_eq!(
        lines,
        [
            "hub: no link, since iot-hub.identity is \"auto\" and IoT Edge has not started this process",
            "records: by kafka 127.0.0.1:9092",
            "OPC Publisher: no node",
        ]
    );
    let both = "[upstream]\norder = [\"kafka\", \"hub\"]\n";
    assert_eq!(
        found(both, of_iot_edge).lines[..2],
        [
            "hub: as module vibration of device gw-7 of plant.azure-devices.net, dialled at edge-7:8883, by tokens that IoT Edge signs",
            "records: by kafka 127.0.0.1:9092; after 60s without it by the hub, output telemetry",
        ]
    );
}

#[test]
fn a_secret_that_everybody_may_read_is_noted_and_never_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, ca_file) = (folder.path().join("key"), folder.path().join("ca.pem"));
    std::fs::write(&file, "c2VjcmV0").expect("writing");
    let device = format!(
        "[iot-hub]\nidentity = \"device\"\nca-file = \"{}\"\n[iot-hub.provisioning]\nid-scope = \"0ne1\"\n\
         registration-id = \"gw-7\"\nsymmetric-key-file = \"{}\"\n",
        ca_file.display(),
        file.display()
    );
    for (mode, is_noted) in [(0o600, false), (0o640, false), (0o604, true), (0o642, true)] {
        std::fs::set_permissions(&file, Permissions::from_mode(mode)).expect("its owner");
        let notes = open_secrets(&load(&device).iot_hub);
        assert_eq!(notes.len(), usize::from(is_noted), "{mode:o}: {notes:?}");
        let is_named = notes.iter().all(|note| note.contains("provisioning.symmetric-key-file"));
        assert!(is_named, "{notes:?}");
    }
    let found = found(&device, alone);
    assert!(found.faults.concat().contains("iot-hub.ca-file"), "it is not there: {found:?}");
    assert!(found.lines[0].contains("as registration gw-7 of scope 0ne1"), "{found:?}");
    assert!(!format!("{found:?}").contains("c2VjcmV0"), "{found:?}");
}
