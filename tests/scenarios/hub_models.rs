//! A model by the method `setModel`, as a module of IoT Edge and as a device of an IoT Hub: what is asserted is what the caller is
//! told, what the server of bundles was asked, and which model stops the machine.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::eventually::eventually;
use serde_json::{Value, json};

use crate::gateway::{MOTOR, Shaking, copy_bundle, one_motor};
use crate::hub_link::Linked;
use crate::models::{ArchiveServer, pack};
use crate::plant::DEADLINE;

const BEFORE: &str = "motor@1.0.0";
const NEXT: &str = "motor@1.0.1";
/// Longer than the module waits for what becomes of a bundle.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// One call that is delivered twice: the whole of this passes if it is answered once.
const TWICE_DEADLINE: Duration = Duration::from_secs(15);

impl Linked {
    fn set_model(&self, payload: &Value) -> anyhow::Result<(i32, Value)> {
        self.hub.block_on(self.hub.call("setModel", payload.clone(), ANSWER_DEADLINE))
    }

    /// Asks until the answer fits: it says how far the bundle has come.
    fn set_model_until(
        &self,
        payload: &Value,
        what: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<()> {
        eventually(what, DEADLINE, || {
            let (status, answer) = self.set_model(payload)?;
            ensure!(status == 200 && fits(&answer), "{status} {answer}");
            Ok(())
        })
    }

    fn wait_in_force(&self, identity: &str) -> anyhow::Result<()> {
        self.wait_reported(identity, |reported| {
            let named = reported["models"]["named"].as_array().map_or(&[][..], Vec::as_slice);
            named.iter().any(|model| model["name"] == "default" && model["inForce"] == identity)
        })?;
        Ok(())
    }

    fn set_models(&self) -> anyhow::Result<String> {
        let file = self.gateway.plant.edge_settings.data_dir.join("set-models.json");
        std::fs::read_to_string(&file).with_context(|| file.display().to_string())
    }

    /// What is no payload of `setModel` changes nothing, whatever it is.
    fn check_nonsense(&self, url: &str, sha256: &str) -> anyhow::Result<()> {
        let before = (self.version()?, self.set_models()?);
        let deep = "[".repeat(100_000);
        let long = json!({ "name": "default", "url": "x".repeat(120_000), "sha256": sha256 });
        let more = json!({ "name": "default", "url": url, "sha256": sha256, "force": true });
        let name = json!({ "x".repeat(120_000): "default", "url": url, "sha256": sha256 });
        let hash = json!({ "name": "default", "url": url, "sha256": "x".repeat(120_000) });
        let [long, more, name, hash] = [long, more, name, hash].map(|it| it.to_string());
        for (payload, expected) in [
            (&b""[..], 400),
            (b"{", 400),
            (b"null", 400),
            (b"[]", 400),
            (b"\xFF\xFE{}", 400),
            (b"{\"name\":\"default\"}", 400),
            (b"{\"name\":7,\"url\":{},\"sha256\":[]}", 400),
            (deep.as_bytes(), 400),
            (more.as_bytes(), 400),
            (name.as_bytes(), 400),
            (long.as_bytes(), 409),
            (hash.as_bytes(), 409),
        ] {
            let call = self.hub.call_bytes("setModel", payload, ANSWER_DEADLINE);
            let shown = String::from_utf8_lossy(&payload[..payload.len().min(60)]).into_owned();
            let (status, answer) = self.hub.block_on(call).with_context(|| shown.clone())?;
            let message = answer["message"].as_str().unwrap_or_default();
            ensure!(status == expected && !message.is_empty(), "{shown}: {status} {answer}");
            ensure!(message.len() < 2_000, "{shown}: {} bytes", message.len());
        }
        for (name, url, sha256, word) in [
            ("nobody", url, sha256, "no model is named nobody"),
            ("", url, sha256, "no model is named"),
            ("../default", url, sha256, "no model is named"),
            ("default", url, "abc", "sha256"),
            ("default", "file:///etc/passwd", sha256, "url"),
            ("default", "no address", sha256, "url"),
        ] {
            let payload = json!({ "name": name, "url": url, "sha256": sha256 });
            let (status, answer) = self.set_model(&payload)?;
            let message = answer["message"].as_str().unwrap_or_default();
            ensure!(status == 409 && message.contains(word), "{payload}: {status} {answer}");
        }
        ensure!(before == (self.version()?, self.set_models()?), "something has changed");
        Ok(())
    }
}

/// A good one, one with another hash, nonsense, and a restart; in the end the good one stops the machine.
fn check_set_model(mut linked: Linked) -> anyhow::Result<()> {
    linked.wait_in_force(BEFORE)?;
    let shaking = Shaking::start(linked.gateway.plant.mosquitto.port());
    let folder = linked.gateway.plant.dir.join("next");
    copy_bundle(&folder, "1.0.1", |_| {})?;
    let archive = linked.gateway.plant.dir.join("next.tar");
    let sha256 = pack(&folder, &archive)?;
    let server = ArchiveServer::start(std::fs::read(&archive)?)?;

    let good = json!({ "name": "default", "url": server.url(), "sha256": sha256 });
    let twice = linked.hub.call_twice("setModel", good.clone(), TWICE_DEADLINE);
    let answers = linked.hub.block_on(twice)?;
    // What comes again while the first is carried out is answered with it.
    ensure!(!answers.is_empty() && answers.iter().all(|it| *it == answers[0]), "{answers:?}");
    ensure!(answers[0].0 == 200 && answers[0].1["refusal"].is_null(), "{answers:?}");
    let is_next = |answer: &Value| answer["state"] == "in-force" && answer["inForce"] == NEXT;
    linked.set_model_until(&good, "it comes into force", is_next)?;
    ensure!(server.ranges().len() == 1, "fetched {} times", server.ranges().len());
    linked.gateway.wait_for_event("model-changed", &[&format!("{BEFORE} -> {NEXT}")])?;

    let wrong = json!({ "name": "default", "url": server.url(), "sha256": "0".repeat(64) });
    linked.set_model_until(&wrong, "refused, and the one before is kept", |answer| {
        let refusal = answer["refusal"].as_str().unwrap_or_default();
        refusal.contains(&format!("has sha256 {sha256}")) && answer["inForce"] == NEXT
    })?;
    linked.check_nonsense(&server.url(), &sha256)?;

    ensure!(linked.gateway.motor.commands().is_empty(), "stopped while it was healthy");
    linked.gateway.stop()?;
    linked.gateway.restart()?;
    linked.wait_in_force(NEXT)?;
    shaking.damage();
    let trip = linked.gateway.wait_for_trip(&linked.gateway.motor, MOTOR)?;
    ensure!(trip["cause"] == "score" && trip["model"] == NEXT, "{trip}");
    shaking.end()?;
    server.close()
}

fn shadow_time() -> [(String, String); 1] {
    [("EDGE__MODEL__SHADOW_TIME".to_owned(), "500ms".to_owned())]
}

#[test]
fn a_model_is_set_by_method_in_a_module() -> anyhow::Result<()> {
    check_set_model(Linked::module("hub-set-model-module", &one_motor(), &shadow_time())?)
}

#[test]
fn a_model_is_set_by_method_in_a_device() -> anyhow::Result<()> {
    check_set_model(Linked::device("hub-set-model-device", &one_motor(), &shadow_time())?)
}
