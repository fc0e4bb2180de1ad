//! Moments as HTTP and the provisioning service write them.

use std::time::Duration;

use rcgen::date_time_ymd;

/// Of a date that cannot be: nothing is older than 1970 here.
const EPOCH: (i32, u8, u8) = (1970, 1, 1);

/// RFC 9110, section 5.6.7.
pub(super) fn http_date(unix_seconds: i64) -> String {
    let (year, month, day) = EPOCH;
    let after = Duration::from_secs(u64::try_from(unix_seconds).unwrap_or(0));
    let moment = date_time_ymd(year, month, day) + after;
    let (weekday, month) = (moment.weekday().to_string(), moment.month().to_string());
    let (hour, minute, second) = moment.to_hms();
    format!(
        "{}, {:02} {} {:04} {hour:02}:{minute:02}:{second:02} GMT",
        &weekday[..3],
        moment.day(),
        &month[..3],
        moment.year()
    )
}

/// RFC 3339, with seven digits of a second.
pub(super) fn timestamp(unix_seconds: i64) -> String {
    let (year, month, day) = EPOCH;
    let after = Duration::from_secs(u64::try_from(unix_seconds).unwrap_or(0));
    let moment = date_time_ymd(year, month, day) + after;
    let (hour, minute, second) = moment.to_hms();
    let month = u8::from(moment.month());
    let (year, day) = (moment.year(), moment.day());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.0000000Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_others_read_them() {
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(timestamp(784_111_777), "1994-11-06T08:49:37.0000000Z");
    }
}
