//! What the person at the terminal reads: the story above, live figures below it.
//!
//! On a terminal the figures are redrawn in place; otherwise only the story is printed, line by line.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

const WRAP_COLUMNS: usize = 96;

/// The six lines of live figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A machine, by its place.
    Machine(usize),
    /// The edge module.
    Edge,
    /// The way to the cloud.
    Network,
    /// The cloud aggregator.
    Cloud,
}

impl Line {
    const fn index(self) -> usize {
        match self {
            Self::Machine(place) => place,
            Self::Edge => 3,
            Self::Network => 4,
            Self::Cloud => 5,
        }
    }
}

const LINES: usize = 6;

/// How a line of the story looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Told.
    Plain,
    /// Good news.
    Good,
    /// Something must be noticed.
    Alarm,
    /// Beside the story.
    Faint,
    /// A heading.
    Bold,
}

impl Tone {
    const fn escape(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Alarm => "\x1b[1;31m",
            Self::Faint => "\x1b[2m",
            Self::Bold => "\x1b[1;36m",
        }
    }
}

/// The terminal.
pub struct Narrator {
    started: Instant,
    terminal: Option<(MultiProgress, Vec<ProgressBar>)>,
}

impl Narrator {
    /// Takes standard output; live figures if it is a terminal.
    ///
    /// # Errors
    /// Never in practice: the style of the figures is fixed.
    pub fn new() -> anyhow::Result<Self> {
        let terminal = if std::io::stdout().is_terminal() {
            let multi =
                MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::stdout_with_hz(8));
            let style = ProgressStyle::with_template("{msg}")?;
            let bars = (0..LINES)
                .map(|_| multi.add(ProgressBar::no_length().with_style(style.clone())))
                .collect();
            Some((multi, bars))
        } else {
            None
        };
        Ok(Self { started: Instant::now(), terminal })
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether the figures are seen.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.terminal.is_some()
    }

    /// A heading.
    pub fn chapter(&self, number: u32, title: &str) {
        self.print(Tone::Plain, "");
        self.print(Tone::Bold, &format!("{number}  {title}"));
    }

    /// A paragraph of the story, wrapped.
    pub fn say(&self, text: &str) {
        for line in wrap(text, WRAP_COLUMNS - 3) {
            self.print(Tone::Plain, &format!("   {line}"));
        }
    }

    /// Something that has just happened, with its time.
    pub fn event(&self, tone: Tone, text: &str) {
        let stamp = format!("   {:5.1} s  ", self.elapsed().as_secs_f64());
        for (number, line) in wrap(text, WRAP_COLUMNS - stamp.len()).iter().enumerate() {
            let margin = if number == 0 { stamp.clone() } else { " ".repeat(stamp.len()) };
            self.print(tone, &format!("{margin}{line}"));
        }
    }

    /// A line as it is.
    pub fn print(&self, tone: Tone, text: &str) {
        let written = match &self.terminal {
            Some((multi, _)) if tone == Tone::Plain => multi.println(text),
            Some((multi, _)) => multi.println(format!("{}{text}\x1b[0m", tone.escape())),
            None => writeln!(std::io::stdout(), "{text}"),
        };
        // Standard output has been closed: the story goes on without a reader, its outcome is the exit code.
        written.ok();
    }

    /// Replaces a line of figures.
    pub fn figure(&self, line: Line, text: String) {
        if let Some((_, bars)) = &self.terminal {
            bars[line.index()].set_message(text);
        }
    }

    /// Takes the figures away.
    pub fn end_figures(&self) {
        if let Some((multi, bars)) = &self.terminal {
            for bar in bars {
                bar.finish_and_clear();
            }
            // As in `print`.
            multi.clear().ok();
        }
    }
}

/// Breaks a text into lines of at most `columns` characters, at its blanks.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > columns {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// A bar of `width` characters, filled to a fraction.
#[must_use]
pub fn gauge(fraction: f64, width: usize) -> String {
    let filled = (fraction.clamp(0.0, 1.0) * width as f64).round() as usize;
    format!("{}{}", "█".repeat(filled), "░".repeat(width - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_at_blanks_and_long_words_stay_whole() {
        let check = |text: &str, expected: &[&str]| assert_eq!(wrap(text, 8), expected, "{text}");
        check("", &[""]);
        check("one two", &["one two"]);
        check("one two three", &["one two", "three"]);
        check("a/very/long/path b", &["a/very/long/path", "b"]);
    }

    #[test]
    fn gauge_is_filled_to_its_fraction() {
        let check = |fraction: f64, expected: &str| assert_eq!(gauge(fraction, 4), expected);
        check(-1.0, "░░░░");
        check(0.5, "██░░");
        check(7.0, "████");
    }
}
