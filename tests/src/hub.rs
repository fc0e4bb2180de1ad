//! A stand-in for the workload API, edgeHub, IoT Hub and its provisioning service, on loopback.
//!
//! What it does follows Microsoft's documents and the source of edgeHub, and is held against the official Python SDK, which runs
//! against it unchanged (`tests/hub/oracle.py`). It judges each connection by itself: user name, client id, signature and end of
//! the token; it delivers nothing that was not subscribed to, closes at QoS 2, at packets over 262 144 bytes and after silence,
//! reads no further past 16 publishes without an acknowledgement, and keeps what it received. As a module the client meets
//! edgeHub, as a device IoT Hub; where those two differ, so does this. A device shows who it is by its key or by a certificate, to
//! the hub and to the provisioning service, which assigns it to this hub or to another. Who speaks HTTP is told the time.
//!
//! What it cannot show: Azure's certificates, throttling and clocks, and the faults of edgeHub itself. Of edgeHub's store it has
//! the messages to inputs; RSA certificates, `encrypt` and `decrypt` of the workload API, children of the edge device, methods
//! over HTTPS and MQTT over WebSocket are not there.

mod certificates;
mod connection;
mod dates;
mod faults;
mod login;
mod records;
mod requests;
mod server;
mod settings;
mod state;
#[cfg(test)]
mod tests;
mod token;
mod topics;
mod twin;
mod wire;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc;

pub use certificates::DeviceCertificate;
use certificates::Validity;
pub use faults::{Fault, RegistrationFault, WorkloadFault};
pub use records::{Direction, HubMessage, Recorded, Refusal};
pub use rumqttc::PacketType;
use server::Server;
use settings::Peer;
pub use settings::{DeviceProof, HubSettings, Provisioning, Subject};
use state::{MethodAnswer, Outgoing, Shared};
use topics::{Channel, base, encode, write_bag};
use twin::Twin;
use workload::Workload;

const HOUR_SECONDS: i64 = 3_600;
/// Primary and secondary.
const THUMBPRINTS_MAX: usize = 2;
/// Why making a certificate cannot fail.
const CERTIFIES: &str = "the names are host names, and the system has random numbers";

/// The workload API, edgeHub, IoT Hub and its provisioning service. It ends when dropped.
pub struct HubStandIn {
    shared: Arc<Shared>,
    server: Server,
    workload: Workload,
    is_about_device: AtomicBool,
    dir: TempDir,
    // Ends without waiting, so that it may be dropped anywhere.
    runtime: Option<tokio::runtime::Runtime>,
    handle: tokio::runtime::Handle,
}

impl HubStandIn {
    /// Starts everything, with a certificate authority of its own.
    ///
    /// # Errors
    /// No port or address is free, or the folder for the socket cannot be made.
    pub fn start(settings: HubSettings) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("hub-stand-in")
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let dir = tempfile::tempdir()?;
        let is_about_device = AtomicBool::new(settings.subject == Subject::Device);
        let (shared, server) = Server::start(settings, handle.clone())?;
        let socket = dir.path().join("workload.sock");
        let workload = Workload::start(Arc::clone(&shared), handle.clone(), socket)?;
        let runtime = Some(runtime);
        let hub = Self { shared, server, workload, is_about_device, dir, runtime, handle };
        hub.write_trust_bundle()?;
        Ok(hub)
    }

    /// Waits for one of the asynchronous functions, where there is no runtime.
    ///
    /// # Panics
    /// Within a runtime.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.handle.block_on(work)
    }

    /// Whose twin, methods and messages the functions are about from now on.
    pub fn address(&self, subject: Subject) {
        self.is_about_device.store(subject == Subject::Device, Ordering::SeqCst);
    }

    fn peer(&self) -> Peer {
        if self.is_about_device.load(Ordering::SeqCst) { Peer::Device } else { Peer::Module }
    }
}

/// What a client needs to find it.
impl HubStandIn {
    /// MQTT over TLS on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The address whose port 8883 is this server's, if it was asked for.
    #[must_use]
    pub fn standard_address(&self) -> Option<String> {
        self.server.standard_address().map(|address| address.to_string())
    }

    /// PEM, all that are to be trusted.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("trust-bundle.pem")
    }

    /// `unix:///…`.
    #[must_use]
    pub fn workload_uri(&self) -> String {
        format!("unix://{}", self.workload.socket().display())
    }

    /// What edgeAgent sets for the module, with `localhost` as the gateway. The port is not part of it.
    #[must_use]
    pub fn module_environment(&self) -> Vec<(String, String)> {
        let settings = &self.shared.settings;
        let pairs = [
            ("IOTEDGE_WORKLOADURI", self.workload_uri().as_str()),
            ("IOTEDGE_MODULEID", &settings.module_id),
            ("IOTEDGE_MODULEGENERATIONID", &settings.generation_id),
            ("IOTEDGE_DEVICEID", &settings.device_id),
            ("IOTEDGE_IOTHUBHOSTNAME", &settings.hub_host),
            ("IOTEDGE_GATEWAYHOSTNAME", "localhost"),
            ("IOTEDGE_APIVERSION", &settings.api_version),
            ("IOTEDGE_AUTHSCHEME", "sasToken"),
            ("RuntimeLogLevel", "Information"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        pairs.to_vec()
    }

    /// Of the device, with `localhost` as the gateway.
    #[must_use]
    pub fn device_connection_string(&self) -> String {
        self.device_connection_string_by("localhost")
    }

    /// Of the device, with this host to dial.
    #[must_use]
    pub fn device_connection_string_by(&self, gateway: &str) -> String {
        let HubSettings { hub_host, device_id, .. } = &self.shared.settings;
        let key = self.provisioning().symmetric_key;
        format!(
            "HostName={hub_host};DeviceId={device_id};SharedAccessKey={key};GatewayHostName={gateway}"
        )
    }

    /// What the device registers with.
    #[must_use]
    pub fn provisioning(&self) -> Provisioning {
        let [key, _] = self.shared.keys_of(Peer::Device);
        let [group, _] = &self.shared.keys.group;
        Provisioning {
            scope_id: self.shared.settings.scope_id.clone(),
            registration_id: self.shared.settings.registration_id.clone(),
            symmetric_key: STANDARD.encode(key),
            group_key: STANDARD.encode(group),
        }
    }

    /// A certificate for the device that holds from an hour ago for this long from now, by the server's clock, and is registered.
    ///
    /// # Panics
    /// The system has no random numbers, or the device signs.
    #[must_use]
    pub fn device_certificate(&self, holds: Duration) -> DeviceCertificate {
        let now = self.shared.now();
        let until = now.saturating_add_unsigned(holds.as_secs());
        let validity = Validity { from: now - HOUR_SECONDS, until };
        let settings = &self.shared.settings;
        let name = settings.registration_id.as_str();
        let made = match settings.device_proof {
            DeviceProof::Key => panic!("this device has a key"),
            DeviceProof::Thumbprint => DeviceCertificate::self_signed(name, validity),
            DeviceProof::Authority => {
                DeviceCertificate::by(&self.shared.lock().device_authority, name, validity)
            }
        };
        let made = made.expect(CERTIFIES);
        self.register_certificate(&made);
        made
    }

    /// Takes a certificate of the device from now on, by its thumbprint. A hub knows two of them: the one before the last is
    /// taken no longer.
    pub fn register_certificate(&self, certificate: &DeviceCertificate) {
        let known = &mut self.shared.lock().device_certificates;
        known.push(certificate.registered.clone());
        if known.len() > THUMBPRINTS_MAX {
            known.remove(0);
        }
    }

    /// Knows no certificate of the device any more.
    pub fn forget_certificates(&self) {
        self.shared.lock().device_certificates.clear();
    }

    /// Assigns the device to another hub, for registrations from now on.
    pub fn assign(&self, hub_host: &str) {
        self.shared.lock().assigned_hub = Some(hub_host.to_owned());
    }

    /// Registrations that were asked for.
    #[must_use]
    pub fn registrations(&self) -> u64 {
        self.shared.lock().registrations
    }

    /// Whether a client is connected to the provisioning service.
    #[must_use]
    pub fn is_registering(&self) -> bool {
        self.shared.lock().endpoint(Peer::Registration).live.is_some()
    }
}

/// The twin, methods and messages of the [`Subject`].
impl HubStandIn {
    /// Merges a patch into the desired properties and sends it to who has subscribed. Gives the new version.
    ///
    /// # Panics
    /// The patch is no object.
    pub fn set_desired(&self, patch: Value) -> u64 {
        let Value::Object(patch) = patch else { panic!("a patch is an object, not {patch}") };
        let is_dropped = self.shared.has_fault(&Fault::DropPatch);
        let mut state = self.shared.lock();
        let endpoint = state.endpoint(self.peer());
        let (sent, version) = endpoint.twin.patch_desired(&patch);
        if !is_dropped {
            endpoint.send(Outgoing {
                channel: Channel::DesiredPatches,
                topic: format!("$iothub/twin/PATCH/properties/desired/?$version={version}"),
                body: sent.to_string().into_bytes(),
                inbox_number: None,
            });
        }
        version
    }

    /// Makes the identity anew: an empty twin whose versions begin again. Nobody is told.
    pub fn recreate_twin(&self) {
        self.shared.lock().endpoint(self.peer()).twin = Twin::new();
    }

    /// Desired properties without `$version`, and the version.
    #[must_use]
    pub fn desired(&self) -> (Value, u64) {
        self.shared.lock().endpoint(self.peer()).twin.desired()
    }

    /// Reported properties without `$version`.
    #[must_use]
    pub fn reported(&self) -> Value {
        self.shared.lock().endpoint(self.peer()).twin.reported()
    }

    /// Waits until what is reported fits, and gives it.
    ///
    /// # Errors
    /// It does not fit in time: says what is reported.
    pub async fn wait_reported(
        &self,
        fits: impl Fn(&Value) -> bool,
        within: Duration,
    ) -> anyhow::Result<Value> {
        let mut changes = self.shared.reported.subscribe();
        // A task of this server's own runtime: the caller's may have no clock.
        let mut deadline = self.handle.spawn(tokio::time::sleep(within));
        loop {
            changes.borrow_and_update();
            let reported = self.reported();
            if fits(&reported) {
                deadline.abort();
                return Ok(reported);
            }
            tokio::select! {
                changed = changes.changed() => changed?,
                _ = &mut deadline => bail!("not within {within:?}; reported is {reported}"),
            }
        }
    }

    /// Whether the subject is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.lock().endpoint(self.peer()).live.is_some()
    }

    /// What the subject's session has subscribed to.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<String> {
        let peer = self.peer();
        let mut state = self.shared.lock();
        let channels = state.endpoint(peer).subscriptions.keys();
        channels.filter_map(|channel| channel.filter(peer, &self.shared.settings)).collect()
    }

    /// Calls a method and waits for the answer.
    ///
    /// # Errors
    /// Nobody is connected who takes methods, no answer comes in time, or it is none.
    pub async fn call(
        &self,
        name: &str,
        payload: Value,
        timeout: Duration,
    ) -> anyhow::Result<(i32, Value)> {
        self.call_bytes(name, payload.to_string().as_bytes(), timeout).await
    }

    /// As [`Self::call`], with a payload that may be anything.
    ///
    /// # Errors
    /// As of that.
    pub async fn call_bytes(
        &self,
        name: &str,
        payload: &[u8],
        timeout: Duration,
    ) -> anyhow::Result<(i32, Value)> {
        let mut answers = self.call_times(name, payload, timeout, 1).await?;
        answers.pop().with_context(|| format!("no answer to {name} within {timeout:?}"))
    }

    /// Delivers one call twice, with one `$rid`, and gives the answers, at most two, that came until the timeout.
    ///
    /// # Errors
    /// Nobody is connected who takes methods, or an answer is none.
    pub async fn call_twice(
        &self,
        name: &str,
        payload: Value,
        timeout: Duration,
    ) -> anyhow::Result<Vec<(i32, Value)>> {
        self.call_times(name, payload.to_string().as_bytes(), timeout, 2).await
    }

    async fn call_times(
        &self,
        name: &str,
        payload: &[u8],
        timeout: Duration,
        times: usize,
    ) -> anyhow::Result<Vec<(i32, Value)>> {
        let (sender, mut receiver) = mpsc::channel::<MethodAnswer>(times);
        let rid = self.send_call(name, payload, times, sender)?;
        let collecting = async move {
            let mut answers = Vec::new();
            let all = async {
                while answers.len() < times {
                    let Some(answer) = receiver.recv().await else { break };
                    answers.push(answer);
                }
            };
            // Those that came until then are what the caller gets.
            tokio::time::timeout(timeout, all).await.ok();
            answers
        };
        // On this server's own runtime: the caller's may have no clock.
        let answers = self.handle.spawn(collecting).await;
        self.shared.lock().calls.remove(&rid);
        answers?.into_iter().map(|answer| answer.map_err(anyhow::Error::msg)).collect()
    }

    /// Gives the `$rid`, which is no number, as edgeHub's.
    fn send_call(
        &self,
        name: &str,
        payload: &[u8],
        times: usize,
        answers: mpsc::Sender<MethodAnswer>,
    ) -> anyhow::Result<String> {
        let mut state = self.shared.lock();
        let rid = format!("c{:x}-{name}", state.next_number());
        state.calls.insert(rid.clone(), answers);
        let outgoing = Outgoing {
            channel: Channel::Methods,
            topic: format!("$iothub/methods/POST/{name}/?$rid={}", encode(&rid)),
            body: payload.to_vec(),
            inbox_number: None,
        };
        let endpoint = state.endpoint(self.peer());
        if !(0..times).all(|_| endpoint.send(outgoing.clone())) {
            state.calls.remove(&rid);
            bail!("nobody is connected who takes methods");
        }
        Ok(rid)
    }

    /// Sends the subject a publish under any topic, with anything in it, as no hub would. Says whether it is on its way: nobody may
    /// be connected, and two thousand are as many as wait.
    #[must_use]
    pub fn send_anything(&self, topic: &str, body: &[u8]) -> bool {
        let (topic, body) = (topic.to_owned(), body.to_vec());
        let outgoing = Outgoing { channel: Channel::Methods, topic, body, inbox_number: None };
        self.shared.lock().endpoint(self.peer()).send(outgoing)
    }

    /// Sends a message to an input of the module; it waits for the module until acknowledged. To the device it is a message from
    /// the cloud, and the input is not told.
    ///
    /// # Panics
    /// More than 1000 wait.
    pub fn send_input(&self, input: &str, properties: &[(&str, &str)], body: &[u8]) {
        let peer = self.peer();
        let settings = &self.shared.settings;
        let base = base(peer, settings);
        let topic = match peer {
            Peer::Module => {
                let sender = [("$.cdid", settings.device_id.as_str()), ("$.cmid", "sender")];
                let bag = write_bag(properties.iter().copied().chain(sender));
                format!("{base}/inputs/{input}/{bag}")
            }
            Peer::Device | Peer::Registration => {
                let to = format!("/{base}/messages/devicebound");
                let bag = write_bag(properties.iter().copied().chain([("$.to", to.as_str())]));
                format!("{base}/messages/devicebound/{bag}")
            }
        };
        let outgoing =
            Outgoing { channel: Channel::Inbox, topic, body: body.to_vec(), inbox_number: None };
        let is_kept = self.shared.lock().keep_for(peer, outgoing);
        assert!(is_kept, "too many messages wait for {base}");
    }

    /// Messages to the subject that it has not acknowledged.
    #[must_use]
    pub fn waiting_inputs(&self) -> usize {
        self.shared.lock().endpoint(self.peer()).inbox.len()
    }
}

/// What it has seen, of all clients, in order.
impl HubStandIn {
    /// Messages that the hub holds.
    #[must_use]
    pub fn messages(&self) -> Vec<HubMessage> {
        self.shared.lock().messages.clone()
    }

    /// How many.
    #[must_use]
    pub fn message_count(&self) -> usize {
        self.shared.lock().messages.len()
    }

    /// Packets on the wire, the last 200 000.
    #[must_use]
    pub fn packets(&self) -> Vec<Recorded> {
        self.shared.lock().packets.iter().cloned().collect()
    }

    /// CONNECTs that were accepted.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.lock().accepted
    }

    /// What was refused, dropped or closed, and why.
    #[must_use]
    pub fn refusals(&self) -> Vec<Refusal> {
        self.shared.lock().refusals.clone()
    }

    /// Requests of the workload API: method, path and query.
    #[must_use]
    pub fn workload_requests(&self) -> Vec<String> {
        self.shared.lock().workload_requests.clone()
    }
}

/// What goes wrong.
impl HubStandIn {
    /// Adds a fault.
    pub fn fault(&self, fault: Fault) {
        self.shared.faults.send_modify(|faults| match fault {
            Fault::TwinStatus(status, times) => faults.twin_status = Some((status, times)),
            Fault::NoConnack
            | Fault::NoPuback
            | Fault::PubackThenDrop
            | Fault::KeepThenDrop
            | Fault::PubackAndLose
            | Fault::Frozen
            | Fault::CloseAtOnce
            | Fault::RefuseCredentials
            | Fault::Unavailable
            | Fault::NoTwinAnswer
            | Fault::DropPatch
            | Fault::SlowPubacks(_) => faults.in_force.push(fault),
        });
    }

    /// Lets registrations fail; what they did before is over.
    pub fn registration_fault(&self, fault: RegistrationFault) {
        self.shared.faults.send_modify(|faults| faults.registration = Some(fault));
    }

    /// Ends all faults, those of the workload API too. Clocks and certificates stay as they are.
    ///
    /// # Panics
    /// As [`Self::workload_fault`].
    pub fn heal(&self) {
        self.shared.faults.send_modify(|faults| *faults = faults::Faults::default());
        self.workload.set_fault(None).expect("the socket's folder is this server's own");
    }

    /// Lets the workload API fail; what it did before is over.
    ///
    /// # Panics
    /// Its socket cannot be bound anew.
    pub fn workload_fault(&self, fault: WorkloadFault) {
        self.workload.set_fault(Some(fault)).expect("the socket's folder is this server's own");
    }

    /// Breaks all connections.
    pub fn drop_connections(&self) {
        self.server.drop_connections();
    }

    /// Ends the MQTT server: connections break, and new ones are refused by the operating system.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// Starts it again on the same port. What a hub keeps on its disk, it still has; sessions only if it did not lose them.
    ///
    /// # Panics
    /// Somebody else has taken the port.
    pub fn resume(&self, session_lost: bool) {
        if session_lost {
            for endpoint in self.shared.lock().endpoints.values_mut() {
                endpoint.subscriptions.clear();
                endpoint.has_session = false;
            }
        }
        self.server.listen().expect("the port was this server's a moment ago");
    }

    /// [`Self::stop`] and [`Self::resume`].
    ///
    /// # Panics
    /// As [`Self::resume`].
    pub async fn restart(&self, session_lost: bool) {
        self.stop().await;
        self.resume(session_lost);
    }

    /// Another server certificate by the same authority, for connections from now on.
    ///
    /// # Panics
    /// The system has no random numbers.
    pub fn renew_server_certificate(&self) {
        self.server.renew_certificate(server::LIFE).expect(CERTIFIES);
    }

    /// A server certificate that ended an hour ago by the server's clock, for connections from now on.
    ///
    /// # Panics
    /// The system has no random numbers.
    pub fn expire_server_certificate(&self) {
        self.server.renew_certificate(server::ENDED).expect(CERTIFIES);
    }

    /// Another authority beside the one before in the trust bundle, and a server certificate by it.
    ///
    /// # Panics
    /// The system has no random numbers, or the bundle cannot be written.
    pub fn new_authority(&self) {
        self.server.new_authority().expect(CERTIFIES);
        self.write_trust_bundle().expect("the bundle's folder is this server's own");
    }

    /// How far the server's clock is before the machine's: judges tokens, and dates a server certificate made anew.
    ///
    /// # Panics
    /// The system has no random numbers, or the offset leads before 1970.
    pub fn set_clock_offset(&self, seconds: i64) {
        self.shift_clock(seconds);
        self.renew_server_certificate();
    }

    /// As [`Self::set_clock_offset`], with the server certificate as it was: as of a hub whose certificate is not new.
    pub fn shift_clock(&self, seconds: i64) {
        self.shared.lock().clock_offset_seconds = seconds;
    }

    fn write_trust_bundle(&self) -> anyhow::Result<()> {
        let bundle = self.shared.lock().trust_bundle();
        std::fs::write(self.ca_file(), bundle).context("writing the trust bundle")
    }
}

impl std::fmt::Debug for HubStandIn {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("HubStandIn").field("port", &self.port()).finish_non_exhaustive()
    }
}

impl Drop for HubStandIn {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
