//! Who may report outcomes.
//!
//! The file has a line `name:token` for each system that reports, so that it is known which one did; a file of one line may have
//! the token alone. Empty lines and lines that begin with `#` are passed over. Tokens are 16 to 256 characters as RFC 6750 (section
//! 2.1) allows them; the padding of `=` does not count towards the 16, since everybody knows it. Names are 1 to 64 letters, digits, `.`,
//! `_` and `-`. Whoever writes the file decides who reports: it belongs to a secret of the platform, readable by this program alone.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::path::Path;

use shared_proto::model::Reporter;

/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 256;
/// Shortest token, in bytes without the padding: fewer could be guessed.
const TOKEN_BYTES_MIN: usize = 16;
/// Longest name of a system, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Most systems: each request is held against all of them.
const TOKENS_MAX: usize = 64;
/// Name of whoever has the only token, if the file gives none.
const NAMELESS: &str = "api";

/// Why there are no tokens. Tells a line's number, never what is in it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokensError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {text}")]
    Read {
        /// The file.
        path: String,
        /// Why not.
        text: String,
    },
    /// No line has a token.
    #[error("has no token: write a line name:token for each system that may report")]
    Empty,
    /// Too many lines have one.
    #[error("has more than {TOKENS_MAX} tokens")]
    TooMany,
    /// A line cannot be used.
    #[error("line {line}: {text}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong, and the remedy.
        text: &'static str,
    },
}

struct Known {
    system: Reporter,
    token: Padded,
}

/// A token and its length, in a form whose comparison takes the same time for all.
struct Padded {
    bytes: [u8; TOKEN_BYTES_MAX],
    length: usize,
}

impl Padded {
    fn new(token: &[u8]) -> Self {
        let mut bytes = [0; TOKEN_BYTES_MAX];
        let kept = token.len().min(TOKEN_BYTES_MAX);
        bytes[..kept].copy_from_slice(&token[..kept]);
        Self { bytes, length: token.len() }
    }

    /// Looks at all bytes, also behind the first that differs.
    fn is_equal(&self, other: &Self) -> bool {
        let pairs = self.bytes.iter().zip(&other.bytes);
        let differing = pairs.fold(0, |differing, (a, b)| black_box(differing | (a ^ b)));
        black_box(usize::from(differing) | (self.length ^ other.length)) == 0
    }
}

/// The tokens that there are. `Debug` prints how many.
pub struct Tokens(Vec<Known>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} tokens: ***", self.0.len())
    }
}

impl Tokens {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, has no token, or a line that cannot be used.
    pub fn read(path: &Path) -> Result<Self, TokensError> {
        let text = std::fs::read_to_string(path).map_err(|error| TokensError::Read {
            path: path.display().to_string(),
            text: error.to_string(),
        })?;
        Self::parse(&text)
    }

    /// Reads the text of the file.
    ///
    /// # Errors
    /// It has no token, or a line that cannot be used.
    pub fn parse(text: &str) -> Result<Self, TokensError> {
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        let lines: Vec<_> =
            lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).collect();
        if lines.len() > TOKENS_MAX {
            return Err(TokensError::TooMany);
        }
        let (mut names, mut tokens) = (BTreeSet::new(), BTreeSet::new());
        let mut known = Vec::new();
        for (line, text) in &lines {
            let refused = |text| TokensError::Line { line: *line, text };
            let (name, token) = match text.split_once(':') {
                Some((name, token)) => (name.trim(), token.trim()),
                None if lines.len() == 1 => (NAMELESS, *text),
                None => return Err(refused("is not name:token, as more than one line has to be")),
            };
            if !is_name(name) {
                let text = "the name is not 1 to 64 letters, digits, \".\", \"_\" and \"-\"";
                return Err(refused(text));
            }
            if !is_token(token) {
                let text = "the token is not 16 to 256 letters, digits, \"-\", \".\", \"_\", \"~\", \"+\" and \"/\" (\"=\" may follow \
                     and does not count towards the 16): `openssl rand -hex 32` makes one";
                return Err(refused(text));
            }
            if !names.insert(name) || !tokens.insert(token) {
                return Err(refused("the name or the token is that of another line, too"));
            }
            let system = Reporter::new(name).map_err(|_| refused("the name cannot be used"))?;
            known.push(Known { system, token: Padded::new(token.as_bytes()) });
        }
        if known.is_empty() { Err(TokensError::Empty) } else { Ok(Self(known)) }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: there is at least one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which system a token belongs to: its number among them and its name. All tokens are looked at, each as a whole, so that the
    /// time tells nothing.
    #[must_use]
    pub fn find(&self, token: &[u8]) -> Option<(usize, &Reporter)> {
        let given = Padded::new(token);
        let mut found = None;
        for (index, known) in self.0.iter().enumerate() {
            if known.token.is_equal(&given) {
                found = Some((index, &known.system));
            }
        }
        found
    }
}

fn is_name(text: &str) -> bool {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_legal)
}

fn is_token(text: &str) -> bool {
    let is_legal = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/')
    };
    let bare = text.trim_end_matches('=');
    bare.len() >= TOKEN_BYTES_MIN && text.len() <= TOKEN_BYTES_MAX && bare.bytes().all(is_legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "0123456789abcdef";
    const SECOND: &str = "fedcba9876543210==";

    fn name_of(tokens: &Tokens, token: &str) -> Option<String> {
        tokens.find(token.as_bytes()).map(|(_, name)| name.to_string())
    }

    #[test]
    fn each_token_belongs_to_a_system_and_nothing_else_does() {
        let text = format!("# who reports\n\nflow:{FIRST}\r\n sap.prod : {SECOND} \n");
        let tokens = Tokens::parse(&text).expect("valid");
        assert_eq!(name_of(&tokens, FIRST).as_deref(), Some("flow"));
        assert_eq!(name_of(&tokens, SECOND).as_deref(), Some("sap.prod"));
        for token in ["", &FIRST[1..], &format!("{FIRST}0"), "fedcba9876543210", "flow"] {
            assert_eq!(name_of(&tokens, token), None, "{token}");
        }
        // No padding is part of a token.
        assert_eq!(name_of(&tokens, &format!("{FIRST}\0")), None);
        assert_eq!(name_of(&tokens, &"a".repeat(100_000)), None);
        let alone = Tokens::parse(FIRST).expect("valid");
        assert_eq!(name_of(&alone, FIRST).as_deref(), Some(NAMELESS));
        assert_eq!(format!("{tokens:?}"), "2 tokens: ***");
    }

    #[test]
    fn a_token_of_the_greatest_length_is_compared_to_its_end() {
        let longest = "a".repeat(TOKEN_BYTES_MAX);
        let tokens = Tokens::parse(&longest).expect("valid");
        assert!(name_of(&tokens, &longest).is_some());
        assert!(name_of(&tokens, &format!("{}b", &longest[1..])).is_none());
        assert!(name_of(&tokens, &format!("{longest}a")).is_none());
        assert!(Tokens::parse(&format!("{longest}a")).is_err());
    }

    #[test]
    fn faults_name_the_line_and_not_what_is_in_it() {
        let check = |text: &str, line: usize, part: &str| {
            let error = Tokens::parse(text).expect_err("refused").to_string();
            assert!(error.starts_with(&format!("line {line}: ")), "{error}");
            assert!(error.contains(part) && !error.contains("0123"), "{error}");
        };
        check(&format!("a:{FIRST}\n{SECOND}"), 2, "is not name:token");
        check(&format!("a b:{FIRST}"), 1, "the name is not");
        check(&format!(":{FIRST}"), 1, "the name is not");
        check(&format!("{}:{FIRST}", "n".repeat(65)), 1, "the name is not");
        check("a:0123456789abcde", 1, "the token is not");
        check("a:0123456789 abcdef", 1, "the token is not");
        check("a:0123456789=abcdef", 1, "the token is not");
        check(&"=".repeat(64), 1, "the token is not");
        check(&format!("a:{}", "=".repeat(16)), 1, "the token is not");
        check("a:0123456789abcde=", 1, "the token is not");
        check(&format!("a:{}", " ".repeat(32)), 1, "the token is not");
        check(&format!("a:{}", "\u{200b}".repeat(16)), 1, "the token is not");
        check(&format!("a:{FIRST}\nb:{FIRST}"), 2, "of another line");
        check(&format!("a:{FIRST}\na:{SECOND}"), 2, "of another line");
        for nothing in ["", "# none\n", "                    ", "\t\n \u{a0}\n"] {
            assert_eq!(Tokens::parse(nothing).expect_err("refused"), TokensError::Empty);
        }
        let many = (0..65).map(|number| format!("s{number}:{FIRST}{number}\n"));
        let error = Tokens::parse(&many.collect::<String>()).expect_err("refused");
        assert_eq!(error, TokensError::TooMany);
    }
}
