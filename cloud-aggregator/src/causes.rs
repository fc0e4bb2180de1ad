//! Errors with their causes, as people read them.

/// An error with its sources, as one line. What a source only repeats is left out.
#[must_use]
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = without_backtrace(&error.to_string()).to_owned();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        let more = without_backtrace(&more);
        if !text.ends_with(more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

/// The Delta library puts a backtrace behind the text of its errors when `RUST_BACKTRACE` is set.
#[must_use]
pub fn without_backtrace(text: &str) -> &str {
    let begin = text.match_indices('\n').find(|(place, _)| {
        let line = text[place + 1..].trim_start();
        let frame = line.trim_start_matches(|character: char| character.is_ascii_digit());
        frame.len() < line.len() && frame.starts_with(": ")
    });
    begin.map_or(text, |(place, _)| text[..place].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_is_cut_off_and_lines_of_text_stay() {
        assert_eq!(without_backtrace("no file\n   0: std::backtrace\n   1: main"), "no file");
        let lines = "2 faults\n  kafka.grup: unknown\n  7 of 9";
        assert_eq!(without_backtrace(lines), lines);
    }
}
