//! Listens, and starts a task for each connection.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::HubSettings;
use super::certificates::{Authority, Validity};
use super::connection::serve;
use super::state::{Keys, Shared, State, unix_seconds};
use super::token::sign;
use crate::random::Random;

/// What clients of MQTT over TLS dial when they are told nothing else.
const STANDARD_PORT: u16 = 8883;
const KEY_BYTES: usize = 32;
/// Of a server certificate, from now on. It begins a little earlier than now: a date has no fractions of a second.
pub(super) const LIFE: Validity = Validity { from: -5, until: 30 * 86_400 };
/// Of one that has ended.
pub(super) const ENDED: Validity = Validity { from: -86_400, until: -3_600 };

/// The listeners and the names in the certificate.
pub(super) struct Server {
    shared: Arc<Shared>,
    runtime: Handle,
    port: u16,
    standard: Option<Ipv4Addr>,
    listening: Mutex<Vec<JoinHandle<()>>>,
}

impl Server {
    pub(super) fn start(
        settings: HubSettings,
        runtime: Handle,
    ) -> anyhow::Result<(Arc<Shared>, Self)> {
        let port = crate::ports::free_port()?;
        let mut listeners = vec![bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?];
        let mut standard = None;
        if settings.listens_on_standard_port {
            let (address, listener) = bind_free_address()?;
            listeners.push(listener);
            standard = Some(address);
        }
        let own_names = own_names(standard);
        let now = unix_seconds();
        let authority = Authority::new("stand-in authority 1", now)?;
        let config = authority.issue(&own_names, after(LIFE, now))?.server_config()?;
        let mut random = Random::new(settings.seed);
        let module = [random_key(&mut random), random_key(&mut random)];
        let group = [random_key(&mut random), random_key(&mut random)];
        let device = group.each_ref().map(|key| sign(key, settings.registration_id.as_bytes()));
        let keys = Keys { module, device, group };
        let assigned_hub =
            standard.map_or_else(|| "localhost".to_owned(), |address| address.to_string());
        let host_names = [settings.hub_host.clone()].into_iter().chain(own_names).collect();
        let device_authority = Authority::new("stand-in authority of devices", now)?;
        let state = State::new(authority, device_authority, config);
        let shared = Arc::new(Shared::new(settings, keys, host_names, assigned_hub, state));
        let listening = Mutex::new(Vec::new());
        let server = Self { shared: Arc::clone(&shared), runtime, port, standard, listening };
        server.serve(listeners)?;
        Ok((shared, server))
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn standard_address(&self) -> Option<Ipv4Addr> {
        self.standard
    }

    /// # Errors
    /// Somebody else listens there.
    pub(super) fn listen(&self) -> anyhow::Result<()> {
        let addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))]
            .into_iter()
            .chain(self.standard.map(|address| SocketAddr::from((address, STANDARD_PORT))));
        self.serve(addresses.map(bind).collect::<anyhow::Result<_>>()?)
    }

    fn serve(&self, listeners: Vec<TcpListener>) -> anyhow::Result<()> {
        let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        let _inside = self.runtime.enter();
        for listener in listeners {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let accepting = accept(Arc::clone(&self.shared), self.runtime.clone(), listener);
            listening.push(self.runtime.spawn(accepting));
        }
        Ok(())
    }

    pub(super) async fn stop(&self) {
        let listening: Vec<_> =
            std::mem::take(&mut *self.listening.lock().unwrap_or_else(PoisonError::into_inner));
        for task in listening {
            task.abort();
            // Only then is the port free. It ends by being aborted, which is an error.
            task.await.ok();
        }
        self.drop_connections();
    }

    pub(super) fn drop_connections(&self) {
        // Each takes itself off the books.
        let open: Vec<_> = self.shared.lock().open.values().cloned().collect();
        for task in open {
            task.abort();
        }
    }

    /// The validity is relative to the server's clock.
    pub(super) fn renew_certificate(&self, validity: Validity) -> anyhow::Result<()> {
        let now = self.shared.now();
        let mut state = self.shared.lock();
        let authority = state.authorities.last().context("no authority")?;
        let issued = authority.issue(&own_names(self.standard), after(validity, now))?;
        state.server_config = issued.server_config()?;
        Ok(())
    }

    pub(super) fn new_authority(&self) -> anyhow::Result<()> {
        {
            let mut state = self.shared.lock();
            let name = format!("stand-in authority {}", state.authorities.len() + 1);
            state.authorities.push(Authority::new(&name, unix_seconds())?);
        }
        self.renew_certificate(LIFE)
    }
}

async fn accept(shared: Arc<Shared>, runtime: Handle, listener: tokio::net::TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // Held until the task is on the books, so that it cannot take itself off them before.
        let mut state = shared.lock();
        let number = state.next_number();
        let task = runtime.spawn(serve(Arc::clone(&shared), stream, number));
        state.open.insert(number, task.abort_handle());
    }
}

/// What the certificate is for.
fn own_names(standard: Option<Ipv4Addr>) -> Vec<String> {
    ["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()]
        .into_iter()
        .chain(standard.map(|address| address.to_string()))
        .collect()
}

fn after(validity: Validity, now: i64) -> Validity {
    Validity { from: now + validity.from, until: now + validity.until }
}

fn random_key(random: &mut Random) -> Vec<u8> {
    (0..KEY_BYTES / 8).flat_map(|_| random.number().to_be_bytes()).collect()
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("listening on {address}"))
}

/// An address of loopback whose standard port nobody has. Starts at a place that differs from process to process.
fn bind_free_address() -> anyhow::Result<(Ipv4Addr, TcpListener)> {
    const FIRST: u32 = 2;
    const COUNT: u32 = 200;
    (0..COUNT)
        .map(|attempt| FIRST + (std::process::id() + attempt) % COUNT)
        .filter_map(|last| u8::try_from(last).ok())
        .map(|last| Ipv4Addr::new(127, 0, 0, last))
        .find_map(|address| Some((address, bind(SocketAddr::from((address, STANDARD_PORT))).ok()?)))
        .context("port 8883 is taken on 200 addresses of loopback")
}
