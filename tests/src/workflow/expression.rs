//! Expressions: `function(arguments)`, text in single quotes, numbers, `true`, `false`, `null`, and members with `['name']`
//! or, where the member may be missing, `?['name']`.

use serde_json::{Number, Value};

use super::Fault;

/// Deepest nesting that is read: definitions are files from outside.
const DEPTH_MAX: usize = 64;

/// One expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expression {
    Literal(Value),
    Call { name: String, arguments: Vec<Self> },
    Member { of: Box<Self>, key: Box<Self>, may_be_missing: bool },
}

/// Reads an expression that fills the whole text.
pub(super) fn parse(text: &str) -> Result<Expression, Fault> {
    let (expression, rest) = parse_start(text)?;
    if rest.trim().is_empty() {
        Ok(expression)
    } else {
        Err(Fault::new(format!("{text:?}: {rest:?} follows the expression")))
    }
}

/// Reads an expression from the beginning of a text and returns what follows it.
pub(super) fn parse_start(text: &str) -> Result<(Expression, &str), Fault> {
    let mut parser = Parser { rest: text };
    let expression =
        parser.expression(0).map_err(|fault| Fault::new(format!("{text:?}: {fault}")))?;
    Ok((expression, parser.rest))
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn expression(&mut self, depth: usize) -> Result<Expression, Fault> {
        if depth > DEPTH_MAX {
            return Err(Fault::new(format!("nested deeper than {DEPTH_MAX}")));
        }
        let mut expression = self.primary(depth)?;
        loop {
            let may_be_missing = if self.skip("?[") {
                true
            } else if self.skip("[") {
                false
            } else {
                return Ok(expression);
            };
            let key = Box::new(self.expression(depth + 1)?);
            self.require("]")?;
            expression = Expression::Member { of: Box::new(expression), key, may_be_missing };
        }
    }

    fn primary(&mut self, depth: usize) -> Result<Expression, Fault> {
        self.rest = self.rest.trim_start();
        if self.rest.starts_with('\'') {
            return self.text().map(|text| Expression::Literal(Value::String(text)));
        }
        if self.rest.starts_with(|first: char| first.is_ascii_digit() || first == '-') {
            return self.number();
        }
        let name = self.word();
        match name.to_ascii_lowercase().as_str() {
            "true" => Ok(Expression::Literal(Value::Bool(true))),
            "false" => Ok(Expression::Literal(Value::Bool(false))),
            "null" => Ok(Expression::Literal(Value::Null)),
            "" => Err(Fault::new(format!("an expression was expected before {:?}", self.rest))),
            lower => {
                let name = lower.to_owned();
                self.require("(")?;
                Ok(Expression::Call { name, arguments: self.arguments(depth)? })
            }
        }
    }

    fn arguments(&mut self, depth: usize) -> Result<Vec<Expression>, Fault> {
        let mut arguments = Vec::new();
        if self.skip(")") {
            return Ok(arguments);
        }
        loop {
            arguments.push(self.expression(depth + 1)?);
            if self.skip(")") {
                return Ok(arguments);
            }
            self.require(",")?;
        }
    }

    /// Text in single quotes; two of them are one.
    fn text(&mut self) -> Result<String, Fault> {
        let mut text = String::new();
        let mut rest = &self.rest[1..];
        loop {
            let Some(end) = rest.find('\'') else {
                return Err(Fault::new("a quote is not closed"));
            };
            text.push_str(&rest[..end]);
            rest = &rest[end + 1..];
            if let Some(after) = rest.strip_prefix('\'') {
                text.push('\'');
                rest = after;
            } else {
                self.rest = rest;
                return Ok(text);
            }
        }
    }

    fn number(&mut self) -> Result<Expression, Fault> {
        let text = self.take(|character| character.is_ascii_digit() || "-.".contains(character));
        text.parse::<Number>()
            .map(|number| Expression::Literal(Value::Number(number)))
            .map_err(|_| Fault::new(format!("{text:?} is no number")))
    }

    fn word(&mut self) -> &'a str {
        self.take(|character| character.is_ascii_alphanumeric() || character == '_')
    }

    fn take(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|character| !belongs(character)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn skip(&mut self, token: &str) -> bool {
        match self.rest.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn require(&mut self, token: &str) -> Result<(), Fault> {
        if self.skip(token) {
            Ok(())
        } else {
            Err(Fault::new(format!("{token:?} was expected before {:?}", self.rest)))
        }
    }
}
