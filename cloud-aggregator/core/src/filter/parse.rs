//! From the text of a filter to its expression.

use std::iter::Peekable;
use std::vec::IntoIter;

use super::{DEPTH_MAX, Node, NumberField, TERMS_MAX, TEXT_BYTES_MAX, Term, TextField};
use crate::settings::Comparison;

/// What is wrong with a filter, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// More than [`TEXT_BYTES_MAX`].
    #[error(
        "the filter has {length} bytes, at most {TEXT_BYTES_MAX} are allowed: make several rules of it"
    )]
    TooLong {
        /// Bytes found.
        length: usize,
    },
    /// More than [`TERMS_MAX`].
    #[error("the filter has more than {TERMS_MAX} comparisons: make several rules of it")]
    TooManyTerms,
    /// More than [`DEPTH_MAX`].
    #[error("more than {limit} parentheses stand inside one another: write the filter flatter")]
    TooDeep {
        /// Allowed.
        limit: usize,
    },
    /// Something else than what can stand there.
    #[error("at byte {at}: {found} where {expected} should be")]
    Unexpected {
        /// Where, from 0.
        at: usize,
        /// What stands there.
        found: String,
        /// What could.
        expected: &'static str,
    },
    /// A field that no reading has.
    #[error(
        "at byte {at}: readings have no field {name:?}, they have metric_type, sensor_id, machine_id, unit, quality, device_id, \
         value and features.NAME"
    )]
    UnknownField {
        /// Where, from 0.
        at: usize,
        /// The name.
        name: String,
    },
    /// Texts have no order here.
    #[error("at byte {at}: {field} is a text and knows = and != alone")]
    NoOrder {
        /// Where, from 0.
        at: usize,
        /// The field.
        field: &'static str,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Open,
    Close,
    Operator(Comparison),
    Word(String),
    Quoted(String),
}

impl Token {
    fn describe(&self) -> String {
        match self {
            Self::Open => "(".to_owned(),
            Self::Close => ")".to_owned(),
            Self::Operator(comparison) => comparison.to_string(),
            Self::Word(word) => word.clone(),
            Self::Quoted(text) => format!("'{text}'"),
        }
    }

    fn is_word(&self, keyword: &str) -> bool {
        matches!(self, Self::Word(word) if word.eq_ignore_ascii_case(keyword))
    }
}

/// What a text may have.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    bytes: usize,
    terms: usize,
    depth: usize,
}

impl Limits {
    /// Of what a person writes.
    pub(super) const WRITTEN: Self =
        Self { bytes: TEXT_BYTES_MAX, terms: TERMS_MAX, depth: DEPTH_MAX };

    /// Of what was accepted once and saved in full: quotes, spaces and digits make it longer, and on each level that was written an
    /// "and" inside an "or" gets parentheses too. The depth is limited, because each level takes room on the stack.
    pub(super) const SAVED: Self =
        Self { bytes: usize::MAX, terms: usize::MAX, depth: 2 * DEPTH_MAX + 1 };
}

pub(super) fn parse(text: &str, limits: Limits) -> Result<Node, FilterError> {
    if text.len() > limits.bytes {
        return Err(FilterError::TooLong { length: text.len() });
    }
    let tokens = tokens(text)?.into_iter().peekable();
    let mut parser = Parser { tokens, end: text.len(), terms: 0, limits };
    let node = parser.expression(0)?;
    match parser.tokens.next() {
        None => Ok(node),
        Some((at, token)) => {
            Err(unexpected(at, &token.describe(), "\"and\", \"or\" or the end of the filter"))
        }
    }
}

fn unexpected(at: usize, found: &str, expected: &'static str) -> FilterError {
    FilterError::Unexpected { at, found: found.to_owned(), expected }
}

const fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'_' | b'.' | b'/' | b':' | b'-' | b'+')
        || byte >= 0x80
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, FilterError> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        let token = match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {
                at += 1;
                continue;
            }
            b'(' => Token::Open,
            b')' => Token::Close,
            b'\'' => {
                let (quoted, length) = quoted(&text[at..], at)?;
                at += length - 1;
                Token::Quoted(quoted)
            }
            b'=' | b'!' | b'<' | b'>' => {
                let is_two = bytes.get(at + 1) == Some(&b'=') && byte != b'=';
                let length = if is_two { 2 } else { 1 };
                at += length - 1;
                let symbol = &text[start..start + length];
                Token::Operator(
                    symbol
                        .parse()
                        .map_err(|()| unexpected(start, symbol, "a comparison (= != > >= < <=)"))?,
                )
            }
            byte if is_word_byte(byte) => {
                let length = bytes[at..].iter().take_while(|byte| is_word_byte(**byte)).count();
                at += length - 1;
                Token::Word(text[start..start + length].to_owned())
            }
            _ => {
                let found = text[at..].chars().next().unwrap_or_default();
                return Err(unexpected(
                    at,
                    &format!("{found:?}"),
                    "a field, a comparison, a number or a text",
                ));
            }
        };
        at += 1;
        tokens.push((start, token));
    }
    Ok(tokens)
}

/// The text between quotes at the start of `rest`, and how many bytes it takes with them.
fn quoted(rest: &str, at: usize) -> Result<(String, usize), FilterError> {
    let mut text = String::new();
    let mut characters = rest.char_indices().skip(1).peekable();
    while let Some((index, character)) = characters.next() {
        if character != '\'' {
            text.push(character);
        } else if characters.next_if(|(_, next)| *next == '\'').is_some() {
            text.push('\'');
        } else {
            return Ok((text, index + 1));
        }
    }
    Err(unexpected(at, "a text without its closing quote", "'text'"))
}

struct Parser {
    tokens: Peekable<IntoIter<(usize, Token)>>,
    end: usize,
    terms: usize,
    limits: Limits,
}

impl Parser {
    fn expression(&mut self, depth: usize) -> Result<Node, FilterError> {
        let mut nodes = vec![self.conjunction(depth)?];
        while self.tokens.next_if(|(_, token)| token.is_word("or")).is_some() {
            nodes.push(self.conjunction(depth)?);
        }
        Ok(joined(nodes, Node::Any))
    }

    fn conjunction(&mut self, depth: usize) -> Result<Node, FilterError> {
        let mut nodes = vec![self.term(depth)?];
        while self.tokens.next_if(|(_, token)| token.is_word("and")).is_some() {
            nodes.push(self.term(depth)?);
        }
        Ok(joined(nodes, Node::All))
    }

    fn term(&mut self, depth: usize) -> Result<Node, FilterError> {
        const EXPECTED: &str = "a field or \"(\"";
        match self.next(EXPECTED)? {
            (_, Token::Open) if depth >= self.limits.depth => {
                Err(FilterError::TooDeep { limit: self.limits.depth })
            }
            (_, Token::Open) => {
                let inner = self.expression(depth + 1)?;
                match self.next("\"and\", \"or\" or \")\"")? {
                    (_, Token::Close) => Ok(inner),
                    (at, token) => {
                        Err(unexpected(at, &token.describe(), "\"and\", \"or\" or \")\""))
                    }
                }
            }
            (at, Token::Word(name)) => {
                self.terms += 1;
                if self.terms > self.limits.terms {
                    return Err(FilterError::TooManyTerms);
                }
                self.comparison(at, name).map(Node::Term)
            }
            (at, token) => Err(unexpected(at, &token.describe(), EXPECTED)),
        }
    }

    fn comparison(&mut self, at: usize, name: String) -> Result<Term, FilterError> {
        let text_field = TextField::ALL.into_iter().find(|field| field.as_str() == name);
        let number_field = match name.strip_prefix("features.") {
            Some(feature) if !feature.is_empty() => Some(NumberField::Feature(feature.to_owned())),
            Some(_) | None => (name == "value").then_some(NumberField::Value),
        };
        if text_field.is_none() && number_field.is_none() {
            return Err(FilterError::UnknownField { at, name });
        }
        let comparison = match self.next("a comparison (= != > >= < <=)")? {
            (_, Token::Operator(comparison)) => comparison,
            (at, token) => {
                return Err(unexpected(at, &token.describe(), "a comparison (= != > >= < <=)"));
            }
        };
        match (text_field, number_field) {
            (Some(field), _) => self.text(at, field, comparison),
            (None, Some(field)) => {
                let number = self.number()?;
                Ok(Term::Number { field, comparison, number })
            }
            (None, None) => Err(FilterError::UnknownField { at, name }),
        }
    }

    fn text(
        &mut self,
        at: usize,
        field: TextField,
        comparison: Comparison,
    ) -> Result<Term, FilterError> {
        let is_equal = match comparison {
            Comparison::Equal => true,
            Comparison::NotEqual => false,
            Comparison::GreaterThan
            | Comparison::GreaterOrEqual
            | Comparison::LessThan
            | Comparison::LessOrEqual => {
                return Err(FilterError::NoOrder { at, field: field.as_str() });
            }
        };
        match self.next("a word or 'text'")? {
            (_, Token::Word(text) | Token::Quoted(text)) => {
                Ok(Term::Text { field, is_equal, text })
            }
            (at, token) => Err(unexpected(at, &token.describe(), "a word or 'text'")),
        }
    }

    fn number(&mut self) -> Result<f64, FilterError> {
        let (at, token) = self.next("a number")?;
        let number = match &token {
            Token::Word(word) => word.parse().ok().filter(|number: &f64| number.is_finite()),
            Token::Open | Token::Close | Token::Operator(_) | Token::Quoted(_) => None,
        };
        number.ok_or_else(|| unexpected(at, &token.describe(), "a finite number"))
    }

    fn next(&mut self, expected: &'static str) -> Result<(usize, Token), FilterError> {
        let end = self.end;
        self.tokens.next().ok_or_else(|| unexpected(end, "the end of the filter", expected))
    }
}

fn joined(mut nodes: Vec<Node>, join: fn(Vec<Node>) -> Node) -> Node {
    if nodes.len() == 1 { nodes.remove(0) } else { join(nodes) }
}
