//! The least HTTP that tests need: a GET, a POST, bytes as they are, and a server that keeps what is posted to it.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;

const TIMEOUT: Duration = Duration::from_secs(5);
/// What is posted may wait for Kafka.
const POST_TIMEOUT: Duration = Duration::from_secs(60);
const BODY_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Status and body of a GET of `path` on 127.0.0.1.
///
/// # Errors
/// Nobody listens, or no HTTP comes back within 5 s.
pub fn get(port: u16, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(BODY_BYTES_MAX).read_to_end(&mut answer)?;
    parse_answer(&String::from_utf8_lossy(&answer))
}

/// Status and whole answer of a POST of JSON with a bearer token, on 127.0.0.1.
///
/// # Errors
/// As [`get`].
pub fn post_json(port: u16, path: &str, token: &str, body: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(POST_TIMEOUT))?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\
         Authorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len(),
    )?;
    let mut answer = String::new();
    stream.take(BODY_BYTES_MAX).read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).context("no status line")?.parse()?;
    Ok((status, answer))
}

/// What a client does once it has sent its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// It waits for the answer.
    Wait,
    /// It says that it sends nothing more, and waits.
    CloseItsSide,
}

/// Sends bytes as they are, at once, and gives what comes back until the other side closes or resets the connection. Who closes
/// before all is sent has perhaps answered nevertheless.
///
/// # Errors
/// Nobody listens, or the connection is still open after 60 s.
pub fn exchange(port: u16, bytes: &[u8], afterwards: Afterwards) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(POST_TIMEOUT))?;
    stream.set_write_timeout(Some(POST_TIMEOUT))?;
    let is_sent = stream.write_all(bytes).is_ok();
    if is_sent && afterwards == Afterwards::CloseItsSide {
        // A connection that is closed already has no side to close.
        stream.shutdown(Shutdown::Write).ok();
    }
    let mut answer = Vec::new();
    match stream.take(BODY_BYTES_MAX).read_to_end(&mut answer) {
        Ok(_) => Ok(answer),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(answer),
        Err(error) => Err(error).context("the connection was not closed"),
    }
}

/// An answer in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Such as 200.
    pub status: u16,
    /// All lines above the body.
    pub head: String,
    /// The body; of a body in chunks their contents.
    pub body: String,
}

impl Answer {
    /// Reads the bytes of one answer.
    ///
    /// # Errors
    /// They are no answer in UTF-8.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let text = std::str::from_utf8(bytes).context("the answer is not UTF-8")?;
        let (head, _) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
        let (status, body) = parse_answer(text)?;
        Ok(Self { status, head: head.to_owned(), body })
    }

    /// The value of the first header of this name, in either case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

fn parse_answer(answer: &str) -> anyhow::Result<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).context("no status line")?.parse()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if chunked { join_chunks(body) } else { body.to_owned() }))
}

fn join_chunks(mut body: &str) -> String {
    let mut joined = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else { break };
        if size == 0 || rest.len() < size {
            break;
        }
        joined.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    joined
}

/// Value of the first sample of a Prometheus metric whose line starts with `name` and contains `label`, summed over all
/// such lines.
#[must_use]
pub fn metric(exposition: &str, name: &str, label: &str) -> Option<f64> {
    let mut sum = None;
    for line in exposition.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        if !rest.starts_with([' ', '{']) || !rest.contains(label) {
            continue;
        }
        if let Some(value) = rest.rsplit(' ').next().and_then(|text| text.parse::<f64>().ok()) {
            sum = Some(sum.unwrap_or(0.0) + value);
        }
    }
    sum
}

/// Takes any request, answers 202 and keeps the bodies.
#[derive(Debug)]
pub struct Webhook {
    port: u16,
    bodies: Arc<Mutex<Vec<String>>>,
}

impl Webhook {
    /// Listens on a free port for as long as the process lives.
    ///
    /// # Errors
    /// No port can be bound.
    pub fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bodies);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = Arc::clone(&kept);
                // A client that breaks off is its own problem; the test sees that nothing was kept.
                std::thread::spawn(move || serve(&stream, &kept).ok());
            }
        });
        Ok(Self { port, bodies })
    }

    /// Where to post.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/alerts", self.port)
    }

    /// What was posted so far, in order.
    #[must_use]
    pub fn bodies(&self) -> Vec<String> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(stream: &TcpStream, bodies: &Mutex<Vec<String>>) -> anyhow::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        while line.trim() != "" {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            line.clear();
            reader.read_line(&mut line)?;
        }
        let mut body = Vec::new();
        reader.by_ref().take(length).read_to_end(&mut body)?;
        bodies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(String::from_utf8_lossy(&body).into_owned());
        (&mut &*stream).write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        let answer =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse_answer(answer).unwrap(), (200, "abcde".to_owned()));
    }

    #[test]
    fn an_answer_has_its_headers_and_its_body() {
        let bytes = b"HTTP/1.1 404 Not Found\r\nContent-Type: a/b\r\nallow: GET\r\n\r\nnone";
        let answer = Answer::parse(bytes).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (404, "none"));
        assert_eq!((answer.header("content-type"), answer.header("404")), (Some("a/b"), None));
        assert!(Answer::parse(b"HTTP/1.1 404").is_err());
    }

    #[test]
    fn metrics_are_summed_over_their_labels() {
        let text = "# TYPE a_total counter\na_total{reason=\"x\"} 2\na_total{reason=\"y\"} 3\na_total_more 9\n";
        assert_eq!(metric(text, "a_total", ""), Some(5.0));
        assert_eq!(metric(text, "a_total", "reason=\"y\""), Some(3.0));
        assert_eq!(metric(text, "b_total", ""), None);
    }
}
