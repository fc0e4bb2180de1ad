//! An HTTP/1.1 proxy on 127.0.0.1 between a client of a storage and the storage, which can fail chosen requests. Its clients speak
//! plain HTTP; the storage may speak TLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tokio::net::TcpSocket;

/// Request bodies above this are refused: tests write small files.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpFault {
    /// It never arrives; the connection breaks.
    Lost,
    /// It is carried out; its answer is lost and the connection breaks.
    AnswerLost,
    /// It never arrives; the connection is reset, as by a firewall that forgets it.
    Reset,
    /// It is carried out; the connection is reset before its answer.
    AnswerReset,
    /// The connection breaks at once; it is carried out so much later, as by a network that holds packets back.
    Late(Duration),
    /// It is not carried out; the answer is this status, with `Retry-After` where it says to come again.
    Status(u16),
    /// It is carried out; the answer comes so much later.
    Slow(Duration),
    /// It waits so long at most for another one of the same path, and both are carried out at the same time: clients race.
    Meet(Duration),
}

/// Which requests fail.
#[derive(Clone, Debug)]
pub struct FaultRule {
    /// For example `PUT`; empty is any.
    pub method: &'static str,
    /// A part of the path.
    pub path: String,
    /// So many that match pass before the first that fails.
    pub passing: u32,
    /// So many fail.
    pub failing: u32,
    /// How.
    pub fault: HttpFault,
}

/// A request that the storage has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// For example `PUT`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Status of the answer.
    pub status: u16,
}

/// Where requests go.
#[derive(Clone, Debug)]
struct Target {
    port: u16,
    tls: Option<Arc<ClientConfig>>,
}

#[derive(Debug)]
struct Shared {
    target: Target,
    rules: Mutex<Vec<FaultRule>>,
    failed: Mutex<Vec<String>>,
    answered: Mutex<Vec<Answered>>,
    /// Paths of requests that wait for another one of the same path.
    alone: Mutex<Vec<String>>,
    met: Condvar,
}

/// Forwards requests to another port.
#[derive(Clone, Debug)]
pub struct HttpProxy {
    port: u16,
    shared: Arc<Shared>,
}

impl HttpProxy {
    /// Listens on a free port for as long as the process lives.
    ///
    /// # Errors
    /// No port can be bound.
    pub fn start(target_port: u16) -> anyhow::Result<Self> {
        Self::start_before(Target { port: target_port, tls: None })
    }

    /// As [`Self::start`], before a server with TLS whose certificate is this one.
    ///
    /// # Errors
    /// As [`Self::start`], or the certificate is none.
    pub fn start_before_tls(
        target_port: u16,
        certificate: CertificateDer<'static>,
    ) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self::start_before(Target { port: target_port, tls: Some(Arc::new(config)) })
    }

    fn start_before(target: Target) -> anyhow::Result<Self> {
        let port = crate::ports::free_port()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let shared = Arc::new(Shared {
            target,
            rules: Mutex::default(),
            failed: Mutex::default(),
            answered: Mutex::default(),
            alone: Mutex::default(),
            met: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&accepting);
                // A line that breaks is what clients of this proxy are tested with.
                std::thread::spawn(move || serve(&shared, &client).ok());
            }
        });
        Ok(Self { port, shared })
    }

    /// Where clients connect.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets requests fail from now on, besides those of earlier rules.
    pub fn fail(&self, rule: FaultRule) {
        self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).push(rule);
    }

    /// Requests that failed so far: method and path.
    #[must_use]
    pub fn failed(&self) -> Vec<String> {
        self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests that the storage has answered so far, also those whose answers were lost.
    #[must_use]
    pub fn answered(&self) -> Vec<Answered> {
        self.shared.answered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn fault_of(&self, method: &str, path: &str) -> Option<HttpFault> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let matching = |rule: &&mut FaultRule| {
            let is_method = rule.method.is_empty() || rule.method == method;
            rule.failing > 0 && is_method && path.contains(&rule.path)
        };
        let rule = rules.iter_mut().find(matching)?;
        if rule.passing > 0 {
            rule.passing -= 1;
            return None;
        }
        rule.failing -= 1;
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.push(format!("{method} {path}: {:?}", rule.fault));
        Some(rule.fault)
    }

    fn meet(&self, path: &str, patience: Duration) {
        let mut alone = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = alone.iter().position(|waiting| waiting == path) {
            alone.swap_remove(index);
            self.met.notify_all();
            return;
        }
        alone.push(path.to_owned());
        let is_alone = |alone: &mut Vec<String>| alone.iter().any(|waiting| waiting == path);
        let (mut alone, waited) = self
            .met
            .wait_timeout_while(alone, patience, is_alone)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            alone.retain(|waiting| waiting != path);
        }
    }

    fn forward(&self, request: &Request) -> anyhow::Result<Vec<u8>> {
        let answer = request.forward(&self.target)?;
        let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let status = std::str::from_utf8(line)?.split(' ').nth(1).context("no status")?.parse()?;
        let (method, path) = (request.method.clone(), request.path.clone());
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.push(Answered { method, path, status });
        Ok(answer)
    }
}

/// One request after the other, each forwarded on a connection of its own.
fn serve(shared: &Shared, client: &TcpStream) -> anyhow::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client);
    while let Some(request) = Request::read(&mut reader)? {
        let fault = shared.fault_of(&request.method, &request.path);
        let answer = match fault {
            Some(HttpFault::Lost) => break,
            Some(HttpFault::Reset) => return reset(client),
            Some(HttpFault::Status(status)) => refusal(status),
            Some(HttpFault::AnswerLost) => {
                shared.forward(&request)?;
                break;
            }
            Some(HttpFault::AnswerReset) => {
                shared.forward(&request)?;
                return reset(client);
            }
            Some(HttpFault::Late(time)) => {
                let target = shared.target.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(time);
                    // Nobody waits for the answer, nor for the news that there is none.
                    request.forward(&target).ok();
                });
                break;
            }
            Some(HttpFault::Slow(time)) => {
                let answer = shared.forward(&request)?;
                std::thread::sleep(time);
                answer
            }
            Some(HttpFault::Meet(patience)) => {
                shared.meet(&request.path, patience);
                shared.forward(&request)?
            }
            None => shared.forward(&request)?,
        };
        let is_last = matches!(fault, None | Some(HttpFault::Status(_) | HttpFault::Meet(_)));
        (&mut &*client).write_all(&answer)?;
        if is_last {
            // The storage was asked to close after its answer, and says so in it.
            break;
        }
    }
    Ok(client.shutdown(Shutdown::Both)?)
}

/// The last one that holds the socket closes it with a reset.
fn reset(client: &TcpStream) -> anyhow::Result<()> {
    Ok(TcpSocket::from_std_stream(client.try_clone()?).set_zero_linger()?)
}

fn refusal(status: u16) -> Vec<u8> {
    let retry = if matches!(status, 429 | 503) { "retry-after: 1\r\n" } else { "" };
    format!("HTTP/1.1 {status} Fault\r\n{retry}content-length: 0\r\nconnection: close\r\n\r\n")
        .into_bytes()
}

struct Request {
    method: String,
    path: String,
    bytes: Vec<u8>,
}

impl Request {
    /// `None` at the end of the connection.
    fn read(reader: &mut impl BufRead) -> anyhow::Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split(' ');
        let method = words.next().context("no method")?.to_owned();
        let path = words.next().context("no path")?.to_owned();
        let mut bytes = line.into_bytes();
        bytes.extend_from_slice(b"connection: close\r\n");
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let name = header.to_ascii_lowercase();
            if let Some(value) = name.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if !name.starts_with("connection:") {
                bytes.extend_from_slice(header.as_bytes());
            }
            if header.trim().is_empty() {
                break;
            }
        }
        if length > BODY_BYTES_MAX {
            bail!("a body of {length} bytes");
        }
        reader.take(length).read_to_end(&mut bytes)?;
        Ok(Some(Self { method, path, bytes }))
    }

    /// The storage's answer, to its last byte.
    fn forward(&self, target: &Target) -> anyhow::Result<Vec<u8>> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, target.port))?;
        let Some(config) = &target.tls else { return self.exchange(&mut stream) };
        let name = std::net::IpAddr::from(Ipv4Addr::LOCALHOST).into();
        let session = ClientConnection::new(Arc::clone(config), name)?;
        self.exchange(&mut StreamOwned::new(session, stream))
    }

    fn exchange(&self, stream: &mut (impl Read + Write)) -> anyhow::Result<Vec<u8>> {
        stream.write_all(&self.bytes)?;
        stream.flush()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Webhook, get};

    #[test]
    fn a_request_fails_as_its_rule_says_and_the_next_passes() {
        let storage = Webhook::start().unwrap();
        let port = storage.url().rsplit(':').next().unwrap().split('/').next().unwrap().to_owned();
        let proxy = HttpProxy::start(port.parse().unwrap()).unwrap();
        let rule = |fault| FaultRule {
            method: "GET",
            path: "/a".to_owned(),
            passing: 0,
            failing: 1,
            fault,
        };
        proxy.fail(rule(HttpFault::Status(503)));
        assert_eq!(get(proxy.port(), "/a").unwrap().0, 503);
        proxy.fail(rule(HttpFault::Lost));
        assert!(get(proxy.port(), "/a").is_err());
        proxy.fail(rule(HttpFault::Reset));
        let error = get(proxy.port(), "/a").unwrap_err();
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        assert_eq!(kind, Some(std::io::ErrorKind::ConnectionReset), "{error:#}");
        assert_eq!(storage.bodies().len(), 0, "none of them arrived");
        assert_eq!(proxy.failed().len(), 3);
    }

    /// Answers each connection once and closes it, as storages do that are asked to.
    fn closing_storage() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                Request::read(&mut BufReader::new(&stream)).unwrap();
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).unwrap();
            }
        });
        port
    }

    #[test]
    fn a_request_waits_for_another_one_of_its_path_and_no_longer_than_it_may() {
        let proxy = HttpProxy::start(closing_storage()).unwrap();
        let rule = |path: &str, failing, patience| FaultRule {
            method: "GET",
            path: path.to_owned(),
            passing: 0,
            failing,
            fault: HttpFault::Meet(patience),
        };
        proxy.fail(rule("/pair", 2, Duration::MAX));
        let paths = ["/pair"; 2].map(|path| {
            let proxy = proxy.clone();
            std::thread::spawn(move || get(proxy.port(), path).unwrap())
        });
        for thread in paths {
            thread.join().unwrap();
        }
        proxy.fail(rule("/single", 1, Duration::from_millis(1)));
        get(proxy.port(), "/single").unwrap();
        let alone = proxy.shared.alone.lock().unwrap().clone();
        assert_eq!((proxy.answered().len(), alone), (3, vec![]));
    }
}
