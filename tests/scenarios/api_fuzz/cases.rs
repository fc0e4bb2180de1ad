//! Requests, and what is to be answered. A seed and a number make one.

use e2e_tests::http::Afterwards;
use e2e_tests::random::Random;
use serde_json::Value;

use super::BODY_BYTES_MAX;
use super::bodies::{faulty, outcome, pick, written};

/// Of the one system that may report.
pub(super) const TOKEN: &str = "a-long-and-secret-token-of-the-cmms";
/// Between the seeds of two numbers.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
/// Of one valid request.
const OUTCOMES_MAX: u64 = 20;
/// What the server reads and throws away of a body, and twice as much.
const ENDLESS_BYTES: usize = 8 * 1024 * 1024;
/// hyper's own limit.
const HEADERS_MAX: u64 = 100;
const HEADER_BYTES_MAX: u64 = 16 * 1024;
const METHODS: [&str; 9] =
    ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE", "post"];
const PAGES: [(&str, &str); 4] =
    [("/healthz", ""), ("/readyz", ""), ("/metrics", "# TYPE "), ("/status", "{")];

/// One of the ports under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Port {
    Outcomes,
    Aggregator,
    Edge,
}

/// What is to come back.
#[derive(Clone, Debug)]
pub(super) enum Expected {
    /// 202 with these names.
    Taken(Vec<Value>),
    /// One of these statuses, and a problem that tells all these words.
    Refused { statuses: Vec<u16>, words: Vec<String> },
    /// Nobody knows whether it is valid: taken, or refused as above.
    Either,
    /// No HTTP, or too much of it.
    NoHttp,
    /// A page with this in it.
    Page(&'static str),
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) kind: &'static str,
    pub(super) port: Port,
    pub(super) request: Vec<u8>,
    pub(super) afterwards: Afterwards,
    pub(super) expected: Expected,
}

impl Case {
    /// A plain valid one.
    pub(super) fn first() -> Self {
        valid(&mut Random::new(0), "first")
    }

    fn outcomes(kind: &'static str, request: Vec<u8>, expected: Expected) -> Self {
        Self { kind, port: Port::Outcomes, request, afterwards: Afterwards::Wait, expected }
    }

    /// Whether the answer has no body whatever it is.
    pub(super) fn is_head(&self) -> bool {
        self.request.starts_with(b"HEAD ")
    }
}

fn refused(statuses: &[u16], words: &[&str]) -> Expected {
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    Expected::Refused { statuses: statuses.to_vec(), words }
}

/// The request of a number.
pub(super) fn case(seed: u64, number: u64) -> Case {
    let mut random = Random::new(seed.wrapping_add(number.wrapping_mul(STRIDE)));
    let random = &mut random;
    let id = format!("fuzz-{seed}-{number}");
    match random.below(200) {
        0..50 => valid(random, &id),
        50..60 => valid_array(random, &id),
        60..110 => {
            let (body, statuses, words) = faulty(random, &id);
            let expected = Expected::Refused { statuses: statuses.to_vec(), words };
            Case::outcomes("a body with a fault", post(&[], &body), expected)
        }
        110..120 => changed_byte(random, &id),
        120..132 => bad_token(random, &id),
        132..142 => bad_type(random, &id),
        142..150 => bad_key(random, &id),
        150..160 => other_method_or_path(random, &id),
        160..166 => bad_framing(random, &id),
        166..176 => no_http(random),
        176..180 => flood_of_headers(random),
        180..198 => page(random),
        198 => unfinished(random, &id),
        _ => too_large(random, &id),
    }
}

/// The header of a POST with these changes: no value leaves one out.
fn head(changes: &[(&str, Option<&str>)]) -> Vec<u8> {
    let authorization = format!("Bearer {TOKEN}");
    let usual = [
        ("host", "127.0.0.1"),
        ("authorization", &authorization),
        ("content-type", "application/json"),
    ];
    let is_changed = |name: &str| changes.iter().any(|(changed, _)| *changed == name);
    let mut head = "POST /api/outcomes HTTP/1.1\r\n".to_owned();
    let kept = usual.into_iter().filter(|(name, _)| !is_changed(name));
    let set = changes.iter().filter_map(|(name, value)| Some((*name, (*value)?)));
    for (name, value) in kept.chain(set) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

fn post(changes: &[(&str, Option<&str>)], body: &[u8]) -> Vec<u8> {
    let length = body.len().to_string();
    let changes = [changes, &[("content-length", Some(length.as_str()))]].concat();
    [head(&changes), body.to_vec()].concat()
}

/// The first of a text in the request is another one.
fn replaced(request: &[u8], what: &[u8], by: &[u8]) -> Vec<u8> {
    let place = request.windows(what.len()).position(|window| window == what).unwrap_or_default();
    [&request[..place], by, &request[place + what.len()..]].concat()
}

fn valid(random: &mut Random, id: &str) -> Case {
    let outcome = outcome(random, id);
    let body = written(random, &outcome);
    let bearer = format!("{} {TOKEN}", pick(random, &["Bearer", "bearer", "BEARER", "bEaReR "]));
    let quoted = format!("\"{id}\"");
    let mut changes = vec![("authorization", Some(bearer.as_str()))];
    if random.below(4) == 0 {
        let types = ["application/json; charset=utf-8", "Application/JSON", "application/json ;"];
        changes.push(("content-type", Some(*pick(random, &types))));
    }
    if random.below(4) == 0 {
        changes.push(("idempotency-key", Some(*pick(random, &[id, &quoted]))));
    }
    let request =
        if random.below(4) == 0 { chunked(random, &changes, &body) } else { post(&changes, &body) };
    let mut case = Case::outcomes("a valid outcome", request, Expected::Taken(vec![outcome]));
    if random.below(4) == 0 {
        case.afterwards = Afterwards::CloseItsSide;
    }
    case
}

fn chunked(random: &mut Random, changes: &[(&str, Option<&str>)], mut body: &[u8]) -> Vec<u8> {
    let mut request = head(&[changes, &[("transfer-encoding", Some("chunked"))]].concat());
    while !body.is_empty() {
        let (chunk, rest) = body.split_at(1 + random.below(body.len() as u64) as usize);
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
        body = rest;
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

fn valid_array(random: &mut Random, id: &str) -> Case {
    let count = 1 + random.below(OUTCOMES_MAX);
    let outcomes: Vec<_> =
        (0..count).map(|number| outcome(random, &format!("{id}-{number}"))).collect();
    let body = written(random, &Value::Array(outcomes.clone()));
    Case::outcomes("a valid array", post(&[], &body), Expected::Taken(outcomes))
}

/// A valid body in which one byte is another one: mostly no JSON, sometimes another outcome.
fn changed_byte(random: &mut Random, id: &str) -> Case {
    // A changed name must not become that of another number's outcome.
    let outcome = outcome(random, &format!("changed-{id}"));
    let mut body = written(random, &outcome);
    let place = random.below(body.len() as u64) as usize;
    body[place] = random.number() as u8;
    Case::outcomes("a changed byte", post(&[], &body), Expected::Either)
}

fn bad_token(random: &mut Random, id: &str) -> Case {
    let body = outcome(random, id).to_string();
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    let shorter = &TOKEN[..random.below(TOKEN.len() as u64) as usize];
    let value = match random.below(11) {
        0 => None,
        1 => bearer(""),
        2 => bearer(shorter),
        3 => bearer(&TOKEN[1..]),
        4 => bearer(&format!("{TOKEN}{}", "=".repeat(1 + random.below(300) as usize))),
        5 => bearer(&TOKEN.to_uppercase()),
        6 => bearer("cmms"),
        7 => Some(TOKEN.to_owned()),
        8 => Some(format!("Basic {TOKEN}")),
        9 => bearer(&format!("{TOKEN}\r\nauthorization: Bearer {TOKEN}")),
        _ => bearer(&format!("{TOKEN}, Bearer {TOKEN}")),
    };
    let request = post(&[("authorization", value.as_deref())], body.as_bytes());
    let words = ["bearer token", "api.token-file"];
    let by_query = format!("/api/outcomes?access_token={TOKEN}&token={TOKEN}");
    let request = match random.below(4) {
        0 => replaced(&request, b"/api/outcomes", by_query.as_bytes()),
        _ => request,
    };
    Case::outcomes("a bad token", request, refused(&[401], &words))
}

fn bad_type(random: &mut Random, id: &str) -> Case {
    let body = outcome(random, id).to_string();
    let (name, value) = *pick(
        random,
        &[
            ("content-type", None),
            ("content-type", Some("")),
            ("content-type", Some("text/plain")),
            ("content-type", Some("application/x-www-form-urlencoded")),
            ("content-type", Some("application/x-protobuf")),
            ("content-type", Some("application/jsonp")),
            ("content-type", Some("application/json; charset=utf-16")),
            ("content-type", Some("application/json\r\ncontent-type: text/plain")),
            ("content-encoding", Some("gzip")),
            ("content-encoding", Some("identity\r\ncontent-encoding: br")),
        ],
    );
    let request = post(&[(name, value)], body.as_bytes());
    Case::outcomes("a bad type", request, refused(&[415], &["JSON", "content-type"]))
}

fn bad_key(random: &mut Random, id: &str) -> Case {
    let body = outcome(random, id).to_string();
    let long = "k".repeat(257 + random.below(1_000) as usize);
    let twice = format!("{id}\r\nidempotency-key: {id}");
    let other = format!("{id}x");
    let (value, status) =
        *pick(random, &[("", 400), ("\"\"", 400), (&long, 400), (&twice, 400), (&other, 422)]);
    let request = post(&[("idempotency-key", Some(value))], body.as_bytes());
    Case::outcomes("a bad key", request, refused(&[status], &["idempotency-key"]))
}

fn other_method_or_path(random: &mut Random, id: &str) -> Case {
    let request = post(&[], outcome(random, id).to_string().as_bytes());
    if random.below(2) == 0 {
        let method = pick(random, &METHODS);
        let request = replaced(&request, b"POST", method.as_bytes());
        return Case::outcomes("another method", request, refused(&[405], &["POST"]));
    }
    let paths = [
        "/",
        "/api",
        "/api/outcomes/",
        "/api/outcomes/1",
        "/API/outcomes",
        "/api/outcomes%2f",
        "//api/outcomes",
        "/api/./outcomes",
        "/api/../api/outcomes",
        "/metrics",
        "/status",
        "*",
        "/%00",
        "/api/outcome",
    ];
    let path = pick(random, &paths);
    let request = replaced(&request, b"/api/outcomes", path.as_bytes());
    // Of an asterisk hyper itself thinks nothing, or something else.
    let expected =
        if *path == "*" { Expected::NoHttp } else { refused(&[404], &["POST /api/outcomes"]) };
    Case::outcomes("another path", request, expected)
}

/// Lengths and chunks that are not true.
fn bad_framing(random: &mut Random, id: &str) -> Case {
    let body = outcome(random, id).to_string();
    let body = body.as_bytes();
    let long = (body.len() + 1 + random.below(1_000) as usize).to_string();
    let short = (1 + random.below(body.len() as u64 - 1)).to_string();
    let with_length =
        |length: &str| [head(&[("content-length", Some(length))]), body.to_vec()].concat();
    let chunks =
        |chunks: &[u8]| [head(&[("transfer-encoding", Some("chunked"))]), chunks.to_vec()].concat();
    let broken = refused(&[400], &["broke off"]);
    let (request, expected) = match random.below(8) {
        0 => (with_length(&long), broken),
        1 => (with_length(&short), refused(&[400], &["no JSON"])),
        2 => (with_length("-1"), Expected::NoHttp),
        3 => (with_length("99999999999999999999999"), Expected::NoHttp),
        4 => (with_length("3\r\ncontent-length: 5"), Expected::NoHttp),
        5 => (chunks(b"zz\r\n{}\r\n0\r\n\r\n"), broken),
        6 => (chunks(b"ffffffffffffffffffff\r\n{}\r\n"), broken),
        _ => (chunks(b"2\r\n{}\r\n"), broken),
    };
    let case = Case::outcomes("bad framing", request, expected);
    Case { afterwards: Afterwards::CloseItsSide, ..case }
}

fn any_port(random: &mut Random) -> Port {
    *pick(random, &[Port::Outcomes, Port::Aggregator, Port::Edge])
}

fn no_http(random: &mut Random) -> Case {
    let noise: Vec<u8> = (0..random.below(400)).map(|_| random.number() as u8).collect();
    let request = match random.below(8) {
        0 => noise,
        1 => [b"GET ", &noise[..]].concat(),
        2 => [b"POST /api/outcomes HTTP/1.1\r\n", &noise[..], b"\r\n\r\n"].concat(),
        // What TLS begins with, and HTTP/2.
        3 => [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &noise[..]].concat(),
        4 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        5 => b"GET /healthz HTTP/9.9\r\nhost: a\r\n\r\n".to_vec(),
        6 => b"GET /healthz\r\n\r\n".to_vec(),
        _ => b"GET /healthz HTTP/1.1\r\n folded: a\r\nhost : a\r\n\r\n".to_vec(),
    };
    let (kind, afterwards) = ("no HTTP", Afterwards::CloseItsSide);
    Case { kind, port: any_port(random), request, afterwards, expected: Expected::NoHttp }
}

fn flood_of_headers(random: &mut Random) -> Case {
    let headers: String = match random.below(2) {
        0 => {
            let count = HEADERS_MAX + 1 + random.below(400);
            (0..count).map(|number| format!("x-{number}: a\r\n")).collect()
        }
        _ => {
            let length = 2 * HEADER_BYTES_MAX + random.below(1_000_000);
            format!("x: {}\r\n", "a".repeat(length as usize))
        }
    };
    let request = format!("GET /healthz HTTP/1.1\r\nhost: a\r\n{headers}\r\n").into_bytes();
    let (kind, afterwards) = ("a flood of headers", Afterwards::Wait);
    Case { kind, port: any_port(random), request, afterwards, expected: Expected::NoHttp }
}

/// Pages are read, and nothing else is done to them.
fn page(random: &mut Random) -> Case {
    let port = *pick(random, &[Port::Aggregator, Port::Edge]);
    let (path, part) = *pick(random, &PAGES);
    let body = "x".repeat(random.below(20_000) as usize);
    let request = |method: &str, path: &str| {
        let length = body.len();
        format!("{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    let others = ["/", "/healthz/", "/Status", "/metrics/x", "/reset", "/api/outcomes", "/..%2f"];
    let (kind, request, expected) = match random.below(4) {
        0 => ("a page", request("GET", path), Expected::Page(part)),
        1 => ("a page's header", request("HEAD", path), Expected::Page(part)),
        2 => {
            let methods: Vec<_> =
                METHODS.iter().filter(|it| !["GET", "HEAD"].contains(it)).collect();
            let method = pick(random, &methods);
            ("a page changed", request(method, path), refused(&[405], &["GET"]))
        }
        _ => {
            let (method, path) = (pick(random, &METHODS), pick(random, &others));
            ("no page", request(method, path), refused(&[404], &["/healthz", "/status"]))
        }
    };
    Case { kind, port, request: request.into_bytes(), afterwards: Afterwards::Wait, expected }
}

/// A body that stops in the middle while its sender stays.
fn unfinished(random: &mut Random, id: &str) -> Case {
    let request = post(&[], outcome(random, id).to_string().as_bytes());
    let begin = head(&[]).len();
    let end = begin + random.below((request.len() - begin - 1) as u64) as usize;
    let end = end.max(request.windows(4).position(|it| it == b"\r\n\r\n").map_or(end, |it| it + 4));
    let request = request[..end.min(request.len() - 1)].to_vec();
    Case::outcomes("an unfinished body", request, refused(&[408], &["did not come within"]))
}

fn too_large(random: &mut Random, id: &str) -> Case {
    let outcome = outcome(random, id).to_string();
    let more = 1 + random.below(BODY_BYTES_MAX as u64) as usize;
    let padded = format!("{outcome}{}", " ".repeat(BODY_BYTES_MAX + more - outcome.len()));
    let request = match random.below(4) {
        0 => head(&[("content-length", Some("9999999999"))]),
        1 => {
            let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
            let chunks = chunk.repeat(ENDLESS_BYTES / 0x10000);
            [head(&[("transfer-encoding", Some("chunked"))]), chunks.into_bytes()].concat()
        }
        2 => chunked(random, &[], padded.as_bytes()),
        _ => post(&[], padded.as_bytes()),
    };
    Case::outcomes("too large", request, refused(&[413], &["more than 65536 bytes"]))
}
