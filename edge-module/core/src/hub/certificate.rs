//! From when to when a certificate holds and whom it names: what has to be read here of an X.509 certificate.
//!
//! Certificates are judged by the TLS library and by the hub. This reads as much of one as says when a person must have put
//! another in its place, and whether it is that of a registration: RFC 5280, section 4.1, in the DER of ITU-T X.690. Lengths of more
//! than four bytes and dates without `Z`, which that profile does not have, are errors.

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xA0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const TELETEX_STRING: u8 = 0x14;
const BMP_STRING: u8 = 0x1E;
/// 2.5.4.3, of ITU-T X.520.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
/// Bytes of a length that is written with more than one.
const LENGTH_BYTES_MAX: usize = 4;
const SECONDS_OF_DAY: i64 = 86_400;

/// From when to when, both included, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// `notBefore`.
    pub from: i64,
    /// `notAfter`.
    pub until: i64,
}

/// Not the DER of a certificate; names the part that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no X.509 certificate: its {0} cannot be read")]
pub struct NoCertificate(&'static str);

/// Reads the validity of a certificate in DER.
///
/// # Errors
///
/// A part up to the validity is not what it must be.
pub fn validity(der: &[u8]) -> Result<Validity, NoCertificate> {
    let (dates, _) = expect(SEQUENCE, after_issuer(der)?, "validity")?;
    let (from, dates) = time(dates).ok_or(NoCertificate("notBefore"))?;
    let (until, _) = time(dates).ok_or(NoCertificate("notAfter"))?;
    Ok(Validity { from, until })
}

/// Reads the common names of the subject of a certificate in DER: one, as a rule. What is no text of its kind is put in as
/// replacement characters.
///
/// # Errors
///
/// A part up to the subject is not what it must be.
pub fn common_names(der: &[u8]) -> Result<Vec<String>, NoCertificate> {
    const SUBJECT: &str = "subject";
    let (_, rest) = expect(SEQUENCE, after_issuer(der)?, "validity")?;
    let (mut sets, _) = expect(SEQUENCE, rest, SUBJECT)?;
    let mut found = Vec::new();
    while !sets.is_empty() {
        let (mut attributes, next) = expect(SET, sets, SUBJECT)?;
        sets = next;
        while !attributes.is_empty() {
            let (attribute, next) = expect(SEQUENCE, attributes, SUBJECT)?;
            attributes = next;
            let (kind, value) = expect(OBJECT_IDENTIFIER, attribute, SUBJECT)?;
            let (tag, value, _) = element(value).ok_or(NoCertificate(SUBJECT))?;
            if kind == COMMON_NAME {
                found.push(text(tag, value));
            }
        }
    }
    Ok(found)
}

/// What follows the issuer.
fn after_issuer(der: &[u8]) -> Result<&[u8], NoCertificate> {
    let (certificate, _) = expect(SEQUENCE, der, "outermost part")?;
    let (mut rest, _) = expect(SEQUENCE, certificate, "signed part")?;
    if rest.first() == Some(&VERSION) {
        rest = expect(VERSION, rest, "version")?.1;
    }
    for (tag, what) in [(INTEGER, "serial number"), (SEQUENCE, "algorithm"), (SEQUENCE, "issuer")] {
        rest = expect(tag, rest, what)?.1;
    }
    Ok(rest)
}

/// A `DirectoryString`.
fn text(tag: u8, content: &[u8]) -> String {
    match tag {
        TELETEX_STRING => content.iter().map(|byte| char::from(*byte)).collect(),
        BMP_STRING => {
            let units = content.chunks(2).map(|pair| match pair {
                &[high, low] => u16::from_be_bytes([high, low]),
                // Half a unit is none.
                _ => 0xFFFD,
            });
            char::decode_utf16(units).map(|unit| unit.unwrap_or('\u{FFFD}')).collect()
        }
        _ => String::from_utf8_lossy(content).into_owned(),
    }
}

/// The content of an element of this kind, and what follows it.
fn expect<'a>(
    tag: u8,
    input: &'a [u8],
    what: &'static str,
) -> Result<(&'a [u8], &'a [u8]), NoCertificate> {
    match element(input) {
        Some((found, content, rest)) if found == tag => Ok((content, rest)),
        Some(_) | None => Err(NoCertificate(what)),
    }
}

/// Tag, content, rest.
fn element(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = input.split_first_chunk()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7F);
        if count == 0 || count > LENGTH_BYTES_MAX {
            return None;
        }
        let (bytes, rest) = rest.split_at_checked(count)?;
        let length = bytes.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        (usize::try_from(length).ok()?, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ` as Unix seconds, and what follows it.
fn time(input: &[u8]) -> Option<(i64, &[u8])> {
    let (tag, content, rest) = element(input)?;
    let digits = content.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let year_digits = match tag {
        UTC_TIME => 2,
        GENERALIZED_TIME => 4,
        _ => return None,
    };
    if digits.len() != year_digits + 10 {
        return None;
    }
    let number =
        |digits: &[u8]| digits.iter().fold(0_i64, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    let (year, others) = digits.split_at_checked(year_digits)?;
    let year = match (tag, number(year)) {
        // RFC 5280, section 4.1.2.5.1.
        (UTC_TIME, year @ 50..) => 1900 + year,
        (UTC_TIME, year) => 2000 + year,
        (_, year) => year,
    };
    let mut pairs = others.chunks_exact(2).map(number);
    let mut next = |low: i64, high: i64| pairs.next().filter(|it| (low..=high).contains(it));
    let (month, day) = (next(1, 12)?, next(1, 31)?);
    let (hour, minute, second) = (next(0, 23)?, next(0, 59)?, next(0, 59)?);
    let seconds = hour * 3_600 + minute * 60 + second;
    Some((days_since_1970(year, month, day) * SECONDS_OF_DAY + seconds, rest))
}

/// Days from 1 January 1970 in the Gregorian calendar. Years are counted from March, so that the leap day is their last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    const DAYS_BEFORE_1970: i64 = 719_468;
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + day_of_year - DAYS_BEFORE_1970
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut made = vec![tag];
        match u8::try_from(content.len()) {
            Ok(length) if length < 0x80 => made.push(length),
            Ok(length) => made.extend([0x81, length]),
            Err(_) => {
                made.push(0x82);
                made.extend(u16::try_from(content.len()).expect("a short one").to_be_bytes());
            }
        }
        made.extend_from_slice(content);
        made
    }

    fn certificate(version: &[u8], dates: &[u8], after: usize) -> Vec<u8> {
        certificate_with(version, dates, &vec![0; after])
    }

    fn certificate_with(version: &[u8], dates: &[u8], after: &[u8]) -> Vec<u8> {
        let mut signed = version.to_vec();
        signed.extend(wrap(INTEGER, &[7]));
        signed.extend(wrap(SEQUENCE, &[5, 0]));
        signed.extend(wrap(SEQUENCE, &[]));
        signed.extend(wrap(SEQUENCE, dates));
        signed.extend_from_slice(after);
        wrap(SEQUENCE, &wrap(SEQUENCE, &signed))
    }

    fn dates(from: (u8, &str), until: (u8, &str)) -> Vec<u8> {
        let mut dates = wrap(from.0, from.1.as_bytes());
        dates.extend(wrap(until.0, until.1.as_bytes()));
        dates
    }

    #[test]
    fn both_forms_of_dates_are_read() {
        let check = |tag, text: &str, expected: Option<i64>| {
            let found = time(&wrap(tag, text.as_bytes())).map(|(seconds, _)| seconds);
            assert_eq!(found, expected, "{text}");
        };
        check(UTC_TIME, "700101000000Z", Some(0));
        check(UTC_TIME, "500101000000Z", Some(-631_152_000));
        check(UTC_TIME, "491231235959Z", Some(2_524_607_999));
        check(GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000));
        check(GENERALIZED_TIME, "20000229120000Z", Some(951_825_600));
        check(GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799));
        for wrong in
            ["700101000000", "7001010000Z", "701301000000Z", "700101240000Z", "70010100000xZ"]
        {
            check(UTC_TIME, wrong, None);
        }
        check(GENERALIZED_TIME, "700101000000Z", None);
        check(INTEGER, "700101000000Z", None);
    }

    #[test]
    fn the_validity_is_found_with_and_without_a_version_and_in_long_certificates() {
        let dates = dates((UTC_TIME, "261127000000Z"), (GENERALIZED_TIME, "20500101000000Z"));
        let expected = Validity { from: 1_795_737_600, until: 2_524_608_000 };
        let version = wrap(VERSION, &wrap(INTEGER, &[2]));
        for (version, after) in [(&[][..], 0), (&version[..], 0), (&version[..], 100), (&[], 900)] {
            assert_eq!(validity(&certificate(version, &dates, after)), Ok(expected), "{after}");
        }
    }

    fn attribute(kind: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
        let pair = [wrap(OBJECT_IDENTIFIER, kind), wrap(tag, value)].concat();
        wrap(SEQUENCE, &pair)
    }

    #[test]
    fn common_names_are_read_in_every_form_of_text() {
        const UTF_8: u8 = 0x0C;
        const PRINTABLE: u8 = 0x13;
        const ORGANISATION: [u8; 3] = [0x55, 0x04, 0x0A];
        let dates = dates((UTC_TIME, "261127000000Z"), (UTC_TIME, "271127000000Z"));
        let check = |subject: &[u8], expected: &[&str]| {
            let made = certificate_with(&[], &dates, &wrap(SEQUENCE, subject));
            assert_eq!(common_names(&made).expect("a subject"), expected, "{subject:?}");
        };
        check(&[], &[]);
        let plant = attribute(&ORGANISATION, UTF_8, b"plant");
        let gateway = attribute(&COMMON_NAME, PRINTABLE, b"gw-7");
        check(&wrap(SET, &plant), &[]);
        check(&[wrap(SET, &plant), wrap(SET, &gateway)].concat(), &["gw-7"]);
        let press = attribute(&COMMON_NAME, UTF_8, "Stößel".as_bytes());
        check(&wrap(SET, &[gateway, plant, press].concat()), &["gw-7", "Stößel"]);
        let wide = attribute(&COMMON_NAME, BMP_STRING, &[0, b'g', 0, b'w', 0]);
        check(&wrap(SET, &wide), &["gw\u{FFFD}"]);
        check(&wrap(SET, &attribute(&COMMON_NAME, TELETEX_STRING, &[0xE9])), &["é"]);
        let made = certificate_with(&[], &dates, &wrap(SEQUENCE, &wrap(SET, &[7, 1, 1])));
        assert_eq!(common_names(&made), Err(NoCertificate("subject")));
    }

    #[test]
    fn what_is_none_says_which_part() {
        let whole = certificate(&[], &dates((UTC_TIME, "x"), (UTC_TIME, "y")), 0);
        let check = |der: &[u8], part| assert_eq!(validity(der), Err(NoCertificate(part)));
        check(&[], "outermost part");
        check(b"-----BEGIN CERTIFICATE-----", "outermost part");
        check(&wrap(SEQUENCE, &[]), "signed part");
        check(&whole[..whole.len() - 1], "outermost part");
        check(&whole, "notBefore");
        check(&[SEQUENCE, 0x85, 0, 0, 0, 0, 1, 0], "outermost part");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_fail(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(validity(&bytes).is_err() || bytes.len() > 30);
            let inside = certificate(&[], &bytes, 0);
            prop_assert!(validity(&inside).is_err() || bytes.len() >= 30);
            let dates = dates((UTC_TIME, "261127000000Z"), (UTC_TIME, "271127000000Z"));
            let read = common_names(&certificate_with(&[], &dates, &wrap(SEQUENCE, &bytes)));
            prop_assert!(read.is_err() || read.is_ok_and(|names| names.len() * 9 <= bytes.len()));
        }
    }
}
