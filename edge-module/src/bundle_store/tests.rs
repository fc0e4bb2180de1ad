use std::fs::{self, File};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::scoring::{METADATA_FILE, MODEL_BYTES_MAX, MODEL_FILE};

mod archives;
mod settings;

const TOKEN: &str = "sig=abracadabra";
const LIMITS: DownloadLimits = DownloadLimits {
    archive_bytes_max: ARCHIVE_BYTES_MAX,
    connect_timeout: Duration::from_secs(20),
    silence_max: Duration::from_secs(20),
    attempt_max: Duration::from_secs(60),
    attempts_max: 4,
    backoff_min: Duration::from_millis(1),
    backoff_max: Duration::from_secs(2),
};

/// An entry of a tar, as `python -m machine_model pack` writes it.
fn entry(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut header = vec![0_u8; 512];
    let mut put = |at: usize, text: &str| {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, name);
    put(100, "0000644\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(148, "        ");
    put(257, "ustar\u{0}00");
    header[156] = kind;
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
    [&header, content, &padding].concat()
}

fn archive_of(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

/// A bundle whose model has so many bytes.
fn bundle(model_bytes: usize) -> Vec<u8> {
    let model: Vec<u8> = (0..model_bytes).map(|at| (at % 251) as u8).collect();
    archive_of(&[entry(METADATA_FILE, b'0', b"{}"), entry(MODEL_FILE, b'0', &model)])
}

/// What a server answers to a request: bytes, and whether it then closes the connection or holds it.
type Answer = Box<dyn Fn(&str) -> (Vec<u8>, bool) + Send>;

/// A server that gives these answers, one a connection, and then is gone.
struct Server {
    url: BundleUrl,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let url = format!("http://127.0.0.1:{port}/bundles/a.tar?{TOKEN}");
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = requests.clone();
        tokio::spawn(async move {
            let mut held = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let head = head(&mut stream).await;
                let (bytes, is_closed) = answer(&head);
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(head);
                // A client that has read enough hangs up.
                stream.write_all(&bytes).await.ok();
                if is_closed {
                    stream.shutdown().await.ok();
                } else {
                    held.push(stream);
                }
            }
            if !held.is_empty() {
                std::future::pending::<()>().await;
            }
        });
        Self { url: BundleUrl::parse(&url).expect("a loopback address"), requests }
    }

    /// The values of `Range` that were asked for, in lower case, empty for none.
    fn ranges(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let range = |head: &String| {
            let lines = head.lines().map(str::to_lowercase);
            lines.filter_map(|line| Some(line.strip_prefix("range: ")?.to_owned())).collect()
        };
        requests.iter().map(range).collect()
    }
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { break };
        head.push(byte);
    }
    String::from_utf8(head).expect("text")
}

fn respond(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}connection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn closing(bytes: Vec<u8>) -> Answer {
    Box::new(move |_| (bytes.clone(), true))
}

fn length(body: &[u8]) -> String {
    format!("content-length: {}\r\n", body.len())
}

fn whole(body: &[u8]) -> Answer {
    closing(respond("200 OK", &length(body), body))
}

/// Promises all and breaks off behind so many bytes.
fn broken(body: &[u8], at: usize) -> Answer {
    closing(respond("200 OK", &length(body), &body[..at]))
}

/// The rest from where the request says.
fn rest(body: &[u8]) -> Answer {
    let body = body.to_vec();
    Box::new(move |head| {
        let head = head.to_lowercase();
        let from = head.split("range: bytes=").nth(1).and_then(|text| text.split('-').next());
        let from: usize = from.and_then(|text| text.parse().ok()).expect("a range");
        let headers = format!(
            "content-range: bytes {from}-{}/{}\r\n{}",
            body.len() - 1,
            body.len(),
            length(&body[from..])
        );
        (respond("206 Partial Content", &headers, &body[from..]), true)
    })
}

fn status(status: &str, headers: &str) -> Answer {
    closing(respond(status, &format!("{headers}content-length: 0\r\n"), b""))
}

fn redirect(location: &str) -> Answer {
    status("302 Found", &format!("location: {location}\r\n"))
}

fn open(data_dir: &Path) -> BundleStore {
    open_with(data_dir, LIMITS)
}

fn open_with(data_dir: &Path, limits: DownloadLimits) -> BundleStore {
    BundleStore::open(data_dir, limits).expect("opened")
}

fn content(folder: &Path) -> Vec<u8> {
    let [metadata, model] =
        [METADATA_FILE, MODEL_FILE].map(|name| fs::read(folder.join(name)).expect("there"));
    archive_of(&[entry(METADATA_FILE, b'0', &metadata), entry(MODEL_FILE, b'0', &model)])
}

/// What the store's folder holds, by name.
fn names(data_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(data_dir.join("models")).expect("listed");
    let names = entries.map(|entry| entry.expect("read").file_name().into_string().expect("text"));
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}

/// Fetches a bundle from these answers; returns the outcome and the ranges that were asked for.
async fn fetch(
    limits: DownloadLimits,
    expected: &[u8],
    answers: Vec<Answer>,
) -> (Result<(), StoreError>, Vec<String>) {
    let data_dir = tempfile::tempdir().expect("folder");
    let server = Server::start(answers).await;
    let store = open_with(data_dir.path(), limits);
    let hash = ArchiveHash::of(expected);
    let fetched = store.fetch(&server.url, &hash).await;
    if let Ok(folder) = &fetched {
        assert!(content(folder) == expected, "another bundle");
        assert_eq!(names(data_dir.path()), [hash.as_str()]);
    }
    if let Err(error) = &fetched {
        let texts = format!("{error} {error:?}");
        assert!(!texts.contains("sig") && !texts.contains("abracadabra"), "{texts}");
        let is_part_kept = names(data_dir.path()).iter().any(|name| name.ends_with(".part"));
        assert!(error.is_transient() || !is_part_kept, "{error}");
    }
    (fetched.map(drop), server.ranges())
}

#[tokio::test]
async fn a_bundle_is_downloaded_and_not_a_second_time() {
    let bundle = bundle(600_000);
    let data_dir = tempfile::tempdir().expect("folder");
    let server = Server::start(vec![whole(&bundle)]).await;
    let source = BundleSource::Download { url: server.url, sha256: ArchiveHash::of(&bundle) };
    let store = open(data_dir.path());
    assert_eq!(store.at_hand(&source).expect("looked"), None);
    let folder = store.folder(&source).await.expect("downloaded");
    assert!(content(&folder) == bundle);
    // The server is gone.
    assert_eq!(open(data_dir.path()).folder(&source).await.expect("there"), folder);
    assert_eq!(store.at_hand(&source).expect("looked"), Some(folder.clone()));
    store.discard(&ArchiveHash::of(&bundle)).expect("removed");
    assert_eq!(store.at_hand(&source).expect("looked"), None);
    assert!(names(data_dir.path()).is_empty());
}

#[tokio::test]
async fn two_that_want_the_same_bundle_download_it_once() {
    let bundle = bundle(10_000);
    let data_dir = tempfile::tempdir().expect("folder");
    let server = Server::start(vec![whole(&bundle)]).await;
    let store = open(data_dir.path());
    let hash = ArchiveHash::of(&bundle);
    let (one, other) =
        tokio::join!(store.fetch(&server.url, &hash), store.fetch(&server.url, &hash));
    assert_eq!(one.expect("downloaded"), other.expect("there"));
    assert_eq!(server.ranges().len(), 1);
}

#[tokio::test]
async fn a_connection_that_breaks_is_gone_on_from() {
    let bundle = bundle(700_000);
    let answers = vec![broken(&bundle, 300_000), rest(&bundle)];
    let (fetched, ranges) = fetch(LIMITS, &bundle, answers).await;
    fetched.expect("downloaded");
    assert_eq!(ranges, ["", "bytes=300000-"]);
}

#[tokio::test]
async fn a_later_process_goes_on_where_an_earlier_one_stopped() {
    let bundle = bundle(700_000);
    let hash = ArchiveHash::of(&bundle);
    let data_dir = tempfile::tempdir().expect("folder");
    let server = Server::start(vec![broken(&bundle, 500_000), rest(&bundle)]).await;
    let once = DownloadLimits { attempts_max: 1, ..LIMITS };
    let error = open_with(data_dir.path(), once).fetch(&server.url, &hash).await;
    assert_eq!(error.expect_err("broken").disposition(), Disposition::Retry);
    assert_eq!(names(data_dir.path()), [format!("{hash}.part")]);
    open_with(data_dir.path(), once).fetch(&server.url, &hash).await.expect("downloaded");
    assert_eq!(server.ranges(), ["", "bytes=500000-"]);
    assert_eq!(names(data_dir.path()), [hash.as_str()]);
}

#[tokio::test]
async fn a_download_that_was_whole_before_a_crash_needs_no_server() {
    let bundle = bundle(1000);
    let hash = ArchiveHash::of(&bundle);
    let data_dir = tempfile::tempdir().expect("folder");
    let store = open(data_dir.path());
    let path = data_dir.path().join("models").join(format!("{hash}.part"));
    fs::write(&path, &bundle).expect("written");
    let url = BundleUrl::parse("https://nowhere.invalid/a.tar").expect("a URL");
    store.fetch(&url, &hash).await.expect("there");
    assert!(!path.exists());
}

#[tokio::test]
async fn a_server_that_does_not_go_on_is_asked_for_the_whole() {
    let bundle = bundle(400_000);
    let part = |last: Answer| vec![broken(&bundle, 200_000), last];
    let (fetched, ranges) = fetch(LIMITS, &bundle, part(whole(&bundle))).await;
    fetched.expect("200 to a range is the whole file");
    assert_eq!(ranges, ["", "bytes=200000-"]);

    let elsewhere = "content-range: bytes 0-9/10\r\ncontent-length: 10\r\n";
    for refusal in [
        status("416 Range Not Satisfiable", ""),
        closing(respond("206 Partial Content", elsewhere, &[0; 10])),
    ] {
        let mut answers = part(refusal);
        answers.push(whole(&bundle));
        let (fetched, ranges) = fetch(LIMITS, &bundle, answers).await;
        fetched.expect("downloaded");
        assert_eq!(ranges, ["", "bytes=200000-", ""]);
    }

    let mut answers = part(status("416 Range Not Satisfiable", ""));
    answers.push(status("416 Range Not Satisfiable", ""));
    let (fetched, _) = fetch(LIMITS, &bundle, answers).await;
    assert!(matches!(fetched, Err(StoreError::Status { status: 416, .. })), "{fetched:?}");
}

#[tokio::test]
async fn a_file_that_is_too_long_is_given_up() {
    let limits = DownloadLimits { archive_bytes_max: 100_000, ..LIMITS };
    let long = vec![0; 5_000_000];
    let announced = closing(respond("200 OK", &length(&long), &long));
    for answer in [announced, closing(respond("200 OK", "", &long))] {
        let (fetched, ranges) = fetch(limits, &bundle(10), vec![answer]).await;
        let error = fetched.expect_err("too long");
        assert!(matches!(error, StoreError::TooLong { limit: 100_000, .. }), "{error}");
        assert_eq!((error.is_transient(), ranges.len()), (false, 1));
    }
}

#[tokio::test]
async fn a_file_with_the_wrong_hash_is_fetched_once_more() {
    let (right, wrong) = (bundle(1000), bundle(1001));
    let (fetched, ranges) = fetch(LIMITS, &right, vec![whole(&wrong), whole(&right)]).await;
    fetched.expect("the second is right");
    assert_eq!(ranges, ["", ""]);

    let (fetched, ranges) = fetch(LIMITS, &right, vec![whole(&wrong), whole(&wrong)]).await;
    let error = fetched.expect_err("wrong");
    assert!(matches!(error, StoreError::Hash { .. }), "{error}");
    assert_eq!((error.disposition(), ranges.len()), (Disposition::Refuse, 2));
}

#[tokio::test]
async fn a_file_that_is_no_bundle_is_refused_though_its_hash_is_right() {
    let (fetched, _) = fetch(LIMITS, b"<html>", vec![whole(b"<html>")]).await;
    let error = fetched.expect_err("no tar");
    assert!(error.to_string().contains("machine_model pack"), "{error}");
    assert_eq!(error.disposition(), Disposition::Refuse);
}

#[tokio::test]
async fn redirects_are_followed_to_a_limit_and_never_to_another_scheme() {
    let bundle = bundle(1000);
    let (fetched, ranges) = fetch(
        LIMITS,
        &bundle,
        vec![redirect("/b?sig=b"), redirect("c?sig=c"), redirect("/d"), whole(&bundle)],
    )
    .await;
    fetched.expect("three are allowed");
    assert_eq!(ranges.len(), 4);

    let circle = (0..5).map(|_| redirect(&format!("/bundles/a.tar?{TOKEN}"))).collect();
    let (fetched, ranges) = fetch(LIMITS, &bundle, circle).await;
    assert!(matches!(fetched, Err(StoreError::Redirects { .. })), "{fetched:?}");
    assert_eq!(ranges.len(), 4);

    for elsewhere in [
        "http://192.0.2.1/a.tar?sig=1",
        "https://192.0.2.1/a.tar?sig=1",
        "ftp://127.0.0.1/sig",
        "file:///etc/sig",
        "http://sig:sig@127.0.0.1/",
    ] {
        let (fetched, ranges) = fetch(LIMITS, &bundle, vec![redirect(elsewhere)]).await;
        let error = fetched.expect_err(elsewhere);
        assert!(matches!(error, StoreError::Redirect { .. }), "{error}");
        assert_eq!((error.is_transient(), ranges.len()), (false, 1));
    }
}

#[tokio::test]
async fn a_silent_server_is_left() {
    let bundle = bundle(1000);
    let limits =
        DownloadLimits { silence_max: Duration::from_millis(500), attempts_max: 2, ..LIMITS };
    let begun = respond("200 OK", &length(&bundle), &bundle[..100]);
    let answers: Vec<Answer> =
        vec![Box::new(|_| (Vec::new(), false)), Box::new(move |_| (begun.clone(), false))];
    let (fetched, ranges) = fetch(limits, &bundle, answers).await;
    let error = fetched.expect_err("silent");
    assert!(matches!(error, StoreError::Silent { .. }), "{error}");
    assert!(error.to_string().ends_with("/bundles/a.tar was silent for 0.5 s"), "{error}");
    assert_eq!((error.disposition(), ranges.len()), (Disposition::Retry, 2));
}

#[tokio::test]
async fn what_came_before_the_silence_is_kept() {
    let bundle = bundle(1000);
    let limits = DownloadLimits { silence_max: Duration::from_secs(2), ..LIMITS };
    let begun = respond("200 OK", &length(&bundle), &bundle[..100]);
    let answers: Vec<Answer> = vec![Box::new(move |_| (begun.clone(), false)), rest(&bundle)];
    let (fetched, ranges) = fetch(limits, &bundle, answers).await;
    fetched.expect("downloaded");
    assert_eq!(ranges, ["", "bytes=100-"]);
}

#[tokio::test]
async fn an_attempt_has_an_end() {
    let bundle = bundle(1000);
    let limits =
        DownloadLimits { attempt_max: Duration::from_millis(100), attempts_max: 1, ..LIMITS };
    let (fetched, _) = fetch(limits, &bundle, vec![Box::new(|_| (Vec::new(), false))]).await;
    let error = fetched.expect_err("too slow");
    assert!(matches!(error, StoreError::TooSlow { .. }), "{error}");
    assert_eq!(error.disposition(), Disposition::Retry);
}

#[tokio::test]
async fn an_answer_says_whether_to_ask_again() {
    let bundle = bundle(1000);
    for refusal in ["404 Not Found", "403 Forbidden", "204 No Content"] {
        let (fetched, ranges) = fetch(LIMITS, &bundle, vec![status(refusal, "")]).await;
        let error = fetched.expect_err(refusal);
        assert!(matches!(error, StoreError::Status { .. }), "{error}");
        assert_eq!((error.is_transient(), ranges.len()), (false, 1), "{refusal}");
    }

    let busy =
        |after: &str| status("503 Service Unavailable", &format!("retry-after: {after}\r\n"));
    let answers = vec![busy("0"), status("429 Too Many Requests", ""), whole(&bundle)];
    fetch(LIMITS, &bundle, answers).await.0.expect("downloaded");

    let (fetched, ranges) = fetch(LIMITS, &bundle, vec![busy("3600")]).await;
    let error = fetched.expect_err("a longer wait than the call has");
    assert_eq!((error.disposition(), ranges.len()), (Disposition::Retry, 1));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)));

    let answers = (0..9).map(|_| busy("Fri, 31 Dec 1999 23:59:59 GMT")).collect();
    let (fetched, ranges) = fetch(LIMITS, &bundle, answers).await;
    assert_eq!(fetched.expect_err("always busy").retry_after(), None);
    assert_eq!(ranges.len(), 4);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_asked_again() {
    let (fetched, _) = fetch(LIMITS, &bundle(10), Vec::new()).await;
    let error = fetched.expect_err("nobody listens");
    assert!(matches!(error, StoreError::Transport { .. }), "{error}");
    assert!(error.to_string().contains("/bundles/a.tar: "), "{error}");
}

#[tokio::test]
async fn a_disk_that_refuses_is_named() {
    let bundle = bundle(1000);
    let hash = ArchiveHash::of(&bundle);
    let data_dir = tempfile::tempdir().expect("folder");
    let store = open(data_dir.path());
    // A folder where the download would be written.
    let obstacle = data_dir.path().join("models").join(format!("{hash}.part"));
    fs::create_dir(&obstacle).expect("made");
    let server = Server::start(vec![whole(&bundle)]).await;
    let error = store.fetch(&server.url, &hash).await.expect_err("no place");
    assert_eq!(error.disposition(), Disposition::Later);
    assert!(error.to_string().contains(&format!("{hash}.part: ")), "{error}");
    assert!(error.to_string().contains("device.data-dir"), "{error}");

    let text = |kind: std::io::ErrorKind| {
        StoreError::Disk { path: "models/a".into(), fault: kind.into() }.to_string()
    };
    let check = |kind, expected: &str| assert!(text(kind).contains(expected), "{}", text(kind));
    check(std::io::ErrorKind::StorageFull, "models/a: the disk is full");
    check(std::io::ErrorKind::QuotaExceeded, "models/a: the disk is full");
    check(std::io::ErrorKind::ReadOnlyFilesystem, "models/a: the disk is read-only");
}

#[test]
fn pruning_keeps_what_is_in_use_and_the_newest() {
    let data_dir = tempfile::tempdir().expect("folder");
    let store = open(data_dir.path());
    let models = data_dir.path().join("models");
    let hashes: Vec<_> = (0..6_u64)
        .map(|age| {
            let hash = ArchiveHash::of(&age.to_le_bytes());
            let folder = models.join(hash.as_str());
            fs::create_dir(&folder).expect("made");
            fs::write(folder.join(MODEL_FILE), b"").expect("written");
            let when = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age);
            File::open(&folder).expect("a folder").set_modified(when).expect("set");
            hash
        })
        .collect();
    fs::create_dir(models.join("of somebody else")).expect("made");
    let removed = store.prune(&[hashes[5].clone(), hashes[0].clone()]).expect("pruned");
    assert_eq!(removed, [hashes[4].clone(), hashes[3].clone()]);
    let mut kept: Vec<_> = [0, 1, 2, 5].map(|age: usize| hashes[age].to_string()).into();
    kept.sort_unstable();
    kept.push("of somebody else".to_owned());
    assert_eq!(names(data_dir.path()), kept);
    assert!(store.prune(&[]).expect("pruned").len() == 2, "the newest two stay");
}

#[test]
fn leftovers_of_a_crash_are_removed_at_the_start() {
    let data_dir = tempfile::tempdir().expect("folder");
    let models = data_dir.path().join("models");
    fs::create_dir_all(models.join("a.new")).expect("made");
    fs::write(models.join("a.new").join(MODEL_FILE), b"half").expect("written");
    let part = |name: &str, age: Duration| {
        fs::write(models.join(name), b"begun").expect("written");
        let file = File::options().write(true).open(models.join(name)).expect("there");
        file.set_modified(SystemTime::now() - age).expect("set");
    };
    part("old.part", PART_KEPT_FOR + Duration::from_secs(60));
    part("young.part", PART_KEPT_FOR - Duration::from_secs(60));
    fs::create_dir(models.join("other")).expect("made");
    open(data_dir.path());
    assert_eq!(names(data_dir.path()), ["other", "young.part"]);
}

#[tokio::test]
async fn half_of_a_bundle_is_none() {
    let bundle = bundle(1000);
    let hash = ArchiveHash::of(&bundle);
    let data_dir = tempfile::tempdir().expect("folder");
    let folder = data_dir.path().join("models").join(hash.as_str());
    fs::create_dir_all(&folder).expect("made");
    fs::write(folder.join(METADATA_FILE), b"{}").expect("written");
    let server = Server::start(vec![whole(&bundle)]).await;
    let fetched = open(data_dir.path()).fetch(&server.url, &hash).await.expect("downloaded");
    assert!(content(&fetched) == bundle);
}

#[tokio::test]
async fn an_archive_on_a_disk_is_unpacked_if_it_is_the_one_that_is_meant() {
    let bundle = bundle(1000);
    let data_dir = tempfile::tempdir().expect("folder");
    let file = data_dir.path().join("a.tar");
    let store = open(data_dir.path());
    let source = |sha256| BundleSource::Archive { file: file.clone(), sha256 };
    let error = store.at_hand(&source(None)).expect_err("no file");
    assert_eq!(error.disposition(), Disposition::Later, "{error}");

    fs::write(&file, &bundle).expect("written");
    let other = Some(ArchiveHash::of(b""));
    let error = store.folder(&source(other)).await.expect_err("another one");
    assert!(matches!(error, StoreError::Hash { .. }), "{error}");
    assert!(names(data_dir.path()).is_empty());

    let hash = ArchiveHash::of(&bundle);
    for sha256 in [Some(hash.clone()), None] {
        let folder = store.folder(&source(sha256.clone())).await.expect("unpacked");
        assert_eq!(store.at_hand(&source(sha256)).expect("there"), Some(folder.clone()));
        assert!(content(&folder) == bundle);
        assert_eq!(store.hash_of(&folder), Some(hash.clone()));
    }

    assert_eq!(store.hash_of(&Path::new("elsewhere").join(hash.as_str())), None);
    fs::write(&file, vec![0; ARCHIVE_BYTES_MAX as usize + 1]).expect("written");
    let error = store.folder(&source(None)).await.expect_err("too long");
    assert!(matches!(error, StoreError::TooLong { .. }), "{error}");
}
