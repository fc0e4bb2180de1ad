//! An HTTP/1.1 proxy on 127.0.0.1 between a client of a storage and the storage, which can fail chosen requests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};

/// Request bodies above this are refused: tests write small files.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpFault {
    /// It never arrives; the connection breaks.
    Lost,
    /// It is carried out; its answer is lost and the connection breaks.
    AnswerLost,
    /// The connection breaks at once; it is carried out so much later, as by a network that holds packets back.
    Late(Duration),
    /// It is not carried out; the answer is this status.
    Status(u16),
    /// It is carried out; the answer comes so much later.
    Slow(Duration),
}

/// Which requests fail.
#[derive(Clone, Debug)]
pub struct FaultRule {
    /// For example `PUT`.
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

#[derive(Debug, Default)]
struct Shared {
    rules: Mutex<Vec<FaultRule>>,
    failed: Mutex<Vec<String>>,
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
        let port = crate::ports::free_port()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&accepting);
                // A line that breaks is what clients of this proxy are tested with.
                std::thread::spawn(move || serve(&shared, &client, target_port).ok());
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
}

impl Shared {
    fn fault_of(&self, method: &str, path: &str) -> Option<HttpFault> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let matching = |rule: &&mut FaultRule| {
            rule.failing > 0 && rule.method == method && path.contains(&rule.path)
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
}

/// One request after the other, each forwarded on a connection of its own.
fn serve(shared: &Shared, client: &TcpStream, target_port: u16) -> anyhow::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client);
    while let Some(request) = Request::read(&mut reader)? {
        let fault = shared.fault_of(&request.method, &request.path);
        let answer = match fault {
            Some(HttpFault::Lost) => break,
            Some(HttpFault::Status(status)) => {
                format!("HTTP/1.1 {status} Fault\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .into_bytes()
            }
            Some(HttpFault::AnswerLost) => {
                request.forward(target_port)?;
                break;
            }
            Some(HttpFault::Late(time)) => {
                std::thread::spawn(move || {
                    std::thread::sleep(time);
                    // Nobody waits for the answer, nor for the news that there is none.
                    request.forward(target_port).ok();
                });
                break;
            }
            Some(HttpFault::Slow(time)) => {
                let answer = request.forward(target_port)?;
                std::thread::sleep(time);
                answer
            }
            None => request.forward(target_port)?,
        };
        let is_last = matches!(fault, None | Some(HttpFault::Status(_)));
        (&mut &*client).write_all(&answer)?;
        if is_last {
            // The storage was asked to close after its answer, and says so in it.
            break;
        }
    }
    Ok(client.shutdown(Shutdown::Both)?)
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
    fn forward(&self, target_port: u16) -> anyhow::Result<Vec<u8>> {
        let mut target = TcpStream::connect((Ipv4Addr::LOCALHOST, target_port))?;
        target.write_all(&self.bytes)?;
        let mut answer = Vec::new();
        target.read_to_end(&mut answer)?;
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
        assert_eq!(storage.bodies().len(), 0, "neither of them arrived");
        assert_eq!(proxy.failed().len(), 2);
    }
}
