use super::archive::{ArchiveError, Files, read};
use super::*;

fn metadata() -> Vec<u8> {
    entry(METADATA_FILE, b'0', b"{}")
}

fn model() -> Vec<u8> {
    entry(MODEL_FILE, b'0', &[7; 700])
}

#[test]
fn both_files_are_found_in_either_order() {
    let expected = Ok(Files { metadata: b"{}", model: &[7; 700] });
    assert_eq!(read(&archive_of(&[metadata(), model()])), expected);
    assert_eq!(read(&archive_of(&[model(), metadata()])), expected);
    // Tars of before POSIX have a NUL for a plain file; common programs fill up to 10240 bytes.
    let old = entry(MODEL_FILE, 0, &[7; 700]);
    let filled = [archive_of(&[old, metadata()]), vec![0; 7168]].concat();
    assert_eq!(read(&filled), expected);
}

#[test]
fn anything_else_is_refused_by_name() {
    let check = |entries: &[Vec<u8>], expected: &str| {
        let error = read(&archive_of(entries)).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(&[metadata(), model(), entry("readme", b'0', b"")], r#"entry "readme""#);
    check(&[metadata(), entry("../model.tflite", b'0', b"")], r#"entry "../model.tflite""#);
    check(&[metadata(), entry("/etc/model.tflite", b'0', b"")], r#"entry "/etc/model.tflite""#);
    check(&[metadata(), entry("./model.tflite", b'0', b"")], r#"entry "./model.tflite""#);
    check(&[entry("./", b'5', b""), metadata()], r#"entry "./" is a folder"#);
    check(&[entry(MODEL_FILE, b'2', b"")], r#"entry "model.tflite" is a symbolic link"#);
    check(&[entry(MODEL_FILE, b'1', b"")], r#"entry "model.tflite" is a hard link"#);
    check(&[entry("PaxHeader", b'x', b"11 path=abc\n")], "an extended header");
    check(&[entry(MODEL_FILE, b'S', b"")], "of an unknown kind");
    check(&[metadata(), model(), metadata()], r#"entry "bundle.json" is there twice"#);
    check(&[metadata()], r#"no entry "model.tflite""#);
    check(&[model()], r#"no entry "bundle.json""#);
    check(&[], r#"no entry "bundle.json""#);
}

#[test]
fn an_entry_has_the_limit_of_its_file() {
    let limit = MODEL_BYTES_MAX as usize;
    let at = |bytes: usize| archive_of(&[metadata(), entry(MODEL_FILE, b'0', &vec![1; bytes])]);
    assert_eq!(read(&at(limit)).map(|files| files.model.len()), Ok(limit));
    let expected = ArchiveError::TooLarge {
        name: MODEL_FILE,
        bytes: MODEL_BYTES_MAX + 1,
        limit: MODEL_BYTES_MAX,
    };
    assert_eq!(read(&at(limit + 1)), Err(expected));
}

#[test]
fn damage_is_noticed() {
    let whole = archive_of(&[metadata(), model()]);
    for end in [0, 100, 511, 512, 600, 1024, 1600, 2048, 2560, 2700] {
        let cut = read(&whole[..end]).expect_err("cut off");
        assert!(matches!(cut, ArchiveError::Truncated(found) if found == end), "{end}: {cut}");
    }
    let mut flipped = whole.clone();
    flipped[130] ^= 1;
    assert_eq!(read(&flipped), Err(ArchiveError::Header(0)));
    let mut longer = whole.clone();
    longer.extend(metadata());
    assert_eq!(read(&longer), Err(ArchiveError::Trailing(whole.len())));
    assert_eq!(read(&[0x1f; 1024]), Err(ArchiveError::Header(0)), "compressed");
    // A size that no program of today writes.
    let mut large = entry(MODEL_FILE, b'0', b"");
    large[124..136].copy_from_slice(b"777777777777");
    large[148..156].copy_from_slice(b"        ");
    let sum: u32 = large.iter().map(|&byte| u32::from(byte)).sum();
    large[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert!(matches!(read(&archive_of(&[large])), Err(ArchiveError::TooLarge { .. })));
}
