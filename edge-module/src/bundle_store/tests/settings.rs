use config::{Config, File, FileFormat};

use super::*;

const HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[derive(Debug, serde::Deserialize)]
struct Model {
    bundle: BundleSettings,
}

/// As the settings are read, from what stands behind `bundle =`.
fn read(text: &str) -> Result<BundleSettings, String> {
    let file = File::from_str(&format!("bundle = {text}"), FileFormat::Toml);
    let read = Config::builder().add_source(file).build().and_then(Config::try_deserialize);
    read.map(|model: Model| model.bundle).map_err(|error| error.to_string())
}

fn source(text: &str) -> Result<BundleSource, String> {
    read(text)?.source()
}

#[test]
fn text_is_a_folder_and_a_table_says_what_it_is() {
    let folder = BundleSource::Folder("a/b".into());
    assert_eq!(source(r#""a/b""#), Ok(folder.clone()));
    assert_eq!(source(r#"{ dir = "a/b" }"#), Ok(folder));
    let archive = |sha256| BundleSource::Archive { file: "b.tar".into(), sha256 };
    assert_eq!(source(r#"{ file = "b.tar" }"#), Ok(archive(None)));
    let hash = ArchiveHash::of(b"");
    let with_hash = source(&format!(r#"{{ file = "b.tar", sha256 = "{}" }}"#, HASH.to_uppercase()));
    assert_eq!(with_hash, Ok(archive(Some(hash.clone()))));
    let found = source(&format!(r#"{{ url = "https://h/b.tar?sv=1#f", sha256 = "{HASH}" }}"#));
    let url = BundleUrl::parse("https://h/b.tar?sv=1").expect("a URL");
    assert_eq!(found, Ok(BundleSource::Download { url, sha256: hash }));
}

#[test]
fn nothing_named_is_no_bundle() {
    for (text, expected) in
        [(r#""""#, true), ("{}", true), (r#"{ dir = "" }"#, true), (r#""a""#, false)]
    {
        assert_eq!(read(text).expect("read").is_none(), expected, "{text}");
    }
    assert!(!read(r#"{ file = "" }"#).expect("read").is_none(), "a mistake, which source() names");
}

#[test]
fn what_is_wrong_is_said() {
    let check = |text: &str, expected: &str| {
        let error = source(text).expect_err(text);
        assert!(error.contains(expected), "{text}: {error}");
    };
    let url = |url: &str| format!(r#"{{ url = "{url}", sha256 = "{HASH}" }}"#);
    check("7", "a folder, or a table with one of dir, file, url");
    check(r#"{ folder = "a" }"#, "unknown field `folder`");
    check("{}", "needs one of dir, file, url");
    check(r#""""#, "dir is empty");
    check(r#"{ file = "" }"#, "file is empty");
    check(r#"{ dir = "a", file = "b" }"#, "only one of dir, file, url");
    check(r#"{ file = "a", url = "https://h/" }"#, "only one of dir, file, url");
    check(&format!(r#"{{ dir = "a", sha256 = "{HASH}" }}"#), "dir takes no sha256");
    check(r#"{ url = "https://h/a" }"#, "url needs sha256");
    check(r#"{ file = "a", sha256 = "abc" }"#, "64 hexadecimal digits");
    check(&format!(r#"{{ file = "a", sha256 = "{}g" }}"#, &HASH[1..]), "64 hexadecimal digits");
    check(&url("http://h/a"), "https is needed");
    check(&url("http://127.0.0.1.nip.io/a"), "https is needed");
    check(&url("http://localhost.h/a"), "https is needed");
    check(&url("ftp://127.0.0.1/a"), "https is needed");
    check(&url("file:///a"), "https is needed");
    check(&url("https://user@h/a"), "a user or a password");
    check(&url("https://:secret@h/a"), "a user or a password");
    check(&url("a.tar"), "url is no URL");
    check(&url(&format!("https://h/{}", "a".repeat(URL_BYTES_MAX))), "longer than 4096 bytes");
}

#[test]
fn http_is_for_loopback_addresses() {
    for url in
        ["http://127.0.0.1:80/a", "http://127.9.9.9/a", "http://[::1]:8080/a", "http://localhost/a"]
    {
        BundleUrl::parse(url).expect(url);
    }
}

#[test]
fn the_query_and_a_password_are_never_shown() {
    let url = BundleUrl::parse("https://h:444/a/b.tar?sig=secret#secret").expect("a URL");
    assert_eq!(
        (url.to_string(), format!("{url:?}")),
        ("https://h:444/a/b.tar".to_owned(), "https://h:444/a/b.tar".to_owned())
    );
    for url in [
        "https://h/b.tar?sig=secret",
        "https://u:secret@h/b.tar",
        "http://h/b.tar?sig=secret",
        "b.tar?sig=secret",
        "https://h:secret/",
    ] {
        let text = format!(r#"{{ url = "{url}", sha256 = "{HASH}" }}"#);
        let settings = read(&text).expect("read");
        let shown = format!("{settings:?} {:?}", settings.source());
        assert!(!shown.contains("secret"), "{shown}");
    }
}
