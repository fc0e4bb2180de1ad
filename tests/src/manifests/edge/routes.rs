//! Routes of edgeHub:
//!
//! ```text
//! route  = FROM source [WHERE condition] INTO sink
//! source = /* | /twinChangeNotifications | /messages/* | /messages/modules/* | /messages/modules/NAME/*
//!        | /messages/modules/NAME/outputs/* | /messages/modules/NAME/outputs/NAME
//! sink   = $upstream | BrokeredEndpoint("/modules/NAME/inputs/NAME")
//! ```
//!
//! Keywords in any case. A condition is an expression over properties; only its brackets and quotes are checked here.

use std::collections::BTreeSet;

use serde::Deserialize;

/// Longest time that a message waits: a year; longer is more likely a mistaken unit.
const TIME_TO_LIVE_SECS_MAX: i64 = 365 * 86_400;
const TIME_TO_LIVE_SECS_MIN: i64 = 60;
const PRIORITY_MAX: u32 = 9;
const ROUTE_BYTES_MAX: usize = 4_096;

/// A route as it stands in the manifest, with priority and time to live.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Entry {
    route: String,
    priority: Option<u32>,
    time_to_live_secs: Option<i64>,
}

/// From where to where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What it takes.
    pub source: Source,
    /// Of what it takes, only this.
    pub condition: Option<String>,
    /// Where it goes.
    pub endpoint: Endpoint,
}

/// What a route takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Messages and changes of twins.
    Everything,
    /// Changes of twins.
    TwinChanges,
    /// All messages.
    Messages,
    /// Messages of modules.
    AllModules,
    /// Messages of one module.
    Module(String),
    /// Messages to outputs of one module.
    Outputs {
        /// Whose.
        module: String,
        /// Absent: all of them.
        output: Option<String>,
    },
}

/// Where a route ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The IoT Hub.
    Upstream,
    /// An input of a module.
    Input {
        /// Whose.
        module: String,
        /// Its name.
        input: String,
    },
}

impl Source {
    /// Whether it takes all that the other one takes.
    #[must_use]
    pub fn includes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Everything, _) | (Self::Messages, Self::Messages | Self::AllModules) => true,
            (Self::Messages | Self::AllModules, Self::Module(_) | Self::Outputs { .. }) => true,
            (Self::Module(name), Self::Outputs { module, .. }) => name == module,
            (Self::Outputs { module, output: None }, Self::Outputs { module: other, .. }) => {
                module == other
            }
            (
                Self::TwinChanges
                | Self::Messages
                | Self::AllModules
                | Self::Module(_)
                | Self::Outputs { .. },
                other,
            ) => self == other,
        }
    }

    fn module(&self) -> Option<&str> {
        match self {
            Self::Everything | Self::TwinChanges | Self::Messages | Self::AllModules => None,
            Self::Module(module) | Self::Outputs { module, .. } => Some(module),
        }
    }
}

pub(super) fn is_time_to_live(seconds: i64) -> bool {
    seconds == -1 || (TIME_TO_LIVE_SECS_MIN..=TIME_TO_LIVE_SECS_MAX).contains(&seconds)
}

impl Entry {
    pub(super) fn parse(&self) -> Result<Route, String> {
        Route::parse(&self.route)
    }

    pub(super) fn faults(&self, name: &str, modules: &BTreeSet<String>) -> Vec<String> {
        let mut faults = Vec::new();
        if self.priority.is_some_and(|priority| priority > PRIORITY_MAX) {
            faults.push(format!("route {name}: priority is 0, the first, to {PRIORITY_MAX}"));
        }
        if self.time_to_live_secs.is_some_and(|seconds| !is_time_to_live(seconds)) {
            faults.push(format!("route {name}: timeToLiveSecs is -1 or more than a minute"));
        }
        let route = match self.parse() {
            Ok(route) => route,
            Err(error) => {
                faults.push(format!("route {name}: {error}"));
                return faults;
            }
        };
        let mut ends: Vec<&str> = route.source.module().into_iter().collect();
        if let Endpoint::Input { module, .. } = &route.endpoint {
            ends.push(module);
            if route.source.module() == Some(module) {
                faults.push(format!("route {name}: {module} would hear itself"));
            }
        }
        let missing = ends.into_iter().filter(|end| !modules.contains(*end));
        faults.extend(missing.map(|end| format!("route {name}: there is no module {end}")));
        faults
    }
}

impl Route {
    /// Reads a route.
    ///
    /// # Errors
    /// What is not of the grammar.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > ROUTE_BYTES_MAX {
            return Err(format!("{} bytes, at most {ROUTE_BYTES_MAX}", text.len()));
        }
        let rest = keyword(text.trim(), "FROM").ok_or("does not begin with FROM")?;
        let (source, rest) = rest.split_once(char::is_whitespace).ok_or("ends after its source")?;
        let source = parse_source(source)?;
        let rest = rest.trim_start();
        let (condition, rest) = match keyword(rest, "WHERE") {
            Some(rest) => {
                let (condition, rest) = split_condition(rest)?;
                (Some(condition.to_owned()), rest)
            }
            None => (None, rest),
        };
        let sink = keyword(rest, "INTO").ok_or("has no INTO after its source")?;
        Ok(Self { source, condition, endpoint: parse_endpoint(sink.trim())? })
    }
}

/// What follows a keyword and a space.
fn keyword<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (head, rest) = text.split_once(char::is_whitespace)?;
    head.eq_ignore_ascii_case(word).then(|| rest.trim_start())
}

fn parse_source(text: &str) -> Result<Source, String> {
    match text.split('/').collect::<Vec<_>>().as_slice() {
        ["", "*"] => Ok(Source::Everything),
        ["", "twinChangeNotifications"] => Ok(Source::TwinChanges),
        ["", "messages", "*"] => Ok(Source::Messages),
        ["", "messages", "modules", "*"] => Ok(Source::AllModules),
        ["", "messages", "modules", module, "*"] => Ok(Source::Module(name(module)?)),
        ["", "messages", "modules", module, "outputs", output] => {
            let output = if *output == "*" { None } else { Some(name(output)?) };
            Ok(Source::Outputs { module: name(module)?, output })
        }
        [..] => Err(format!("{text} is no source")),
    }
}

fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    if text == "$upstream" {
        return Ok(Endpoint::Upstream);
    }
    let path = text.strip_prefix("BrokeredEndpoint(\"").and_then(|rest| rest.strip_suffix("\")"));
    let parts = path.map(|path| path.split('/').collect::<Vec<_>>()).unwrap_or_default();
    match parts.as_slice() {
        ["", "modules", module, "inputs", input] => {
            Ok(Endpoint::Input { module: name(module)?, input: name(input)? })
        }
        [..] => Err(format!("{text} is no sink")),
    }
}

fn name(text: &str) -> Result<String, String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.is_empty() || !text.bytes().all(is_name) {
        return Err(format!("{text:?} is no name"));
    }
    Ok(text.to_owned())
}

/// The condition up to INTO, outside of brackets and quotes.
fn split_condition(text: &str) -> Result<(&str, &str), String> {
    let (mut depth, mut quote) = (0_u32, None);
    for (at, found) in text.char_indices() {
        match (quote, found) {
            (Some(open), found) if open == found => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(found),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => {
                depth = depth.checked_sub(1).ok_or("a bracket too many in its condition")?;
            }
            (None, found) if depth == 0 && found.is_whitespace() => {
                let rest = text[at..].trim_start();
                if keyword(rest, "INTO").is_some() && at > 0 {
                    return Ok((text[..at].trim_end(), rest));
                }
            }
            (None, _) => {}
        }
    }
    Err("its condition does not end".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str) -> Source {
        Source::Module(name.to_owned())
    }

    fn outputs(module: &str, output: Option<&str>) -> Source {
        Source::Outputs { module: module.to_owned(), output: output.map(str::to_owned) }
    }

    #[test]
    fn every_form_of_a_route_is_read() {
        let upstream =
            |source: Source| Route { source, condition: None, endpoint: Endpoint::Upstream };
        for (text, expected) in [
            ("FROM /* INTO $upstream", upstream(Source::Everything)),
            ("FROM /messages/* INTO $upstream", upstream(Source::Messages)),
            ("from /messages/modules/* into $upstream", upstream(Source::AllModules)),
            ("FROM /twinChangeNotifications INTO $upstream", upstream(Source::TwinChanges)),
            ("FROM /messages/modules/a/* INTO  $upstream ", upstream(module("a"))),
            ("FROM /messages/modules/a/outputs/* INTO $upstream", upstream(outputs("a", None))),
            (
                "FROM /messages/modules/a/outputs/b INTO $upstream",
                upstream(outputs("a", Some("b"))),
            ),
            (
                "FROM /messages/modules/a/* WHERE (t = ' INTO ' AND x > 1) INTO BrokeredEndpoint(\"/modules/b/inputs/c\")",
                Route {
                    source: module("a"),
                    condition: Some("(t = ' INTO ' AND x > 1)".to_owned()),
                    endpoint: Endpoint::Input { module: "b".to_owned(), input: "c".to_owned() },
                },
            ),
        ] {
            assert_eq!(Route::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_route_is_refused() {
        for (text, fault) in [
            ("", "FROM"),
            ("SELECT /messages/* INTO $upstream", "FROM"),
            ("FROM /messages/*", "ends after its source"),
            ("FROM /messages/modules/a INTO $upstream", "is no source"),
            ("FROM messages/* INTO $upstream", "is no source"),
            ("FROM /messages/modules//* INTO $upstream", "is no name"),
            ("FROM /messages/* TO $upstream", "no INTO"),
            ("FROM /messages/* INTO upstream", "is no sink"),
            ("FROM /messages/* INTO BrokeredEndpoint('/modules/b/inputs/c')", "is no sink"),
            ("FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/\")", "is no name"),
            ("FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/input/c\")", "is no sink"),
            ("FROM /messages/* WHERE INTO $upstream", "does not end"),
            ("FROM /messages/* WHERE (a = 1 INTO $upstream", "does not end"),
            ("FROM /messages/* WHERE a) INTO $upstream", "a bracket too many"),
        ] {
            let refused = Route::parse(text).expect_err(text);
            assert!(refused.contains(fault), "{text}: {refused}");
        }
    }

    #[test]
    fn a_wider_source_includes_a_narrower_one_and_not_the_other_way_round() {
        let widest_first = [
            Source::Everything,
            Source::Messages,
            Source::AllModules,
            module("a"),
            outputs("a", None),
            outputs("a", Some("b")),
        ];
        for (index, wide) in widest_first.iter().enumerate() {
            for (other, narrow) in widest_first.iter().enumerate() {
                assert_eq!(wide.includes(narrow), index <= other, "{wide:?} {narrow:?}");
            }
        }
        assert!(!module("a").includes(&outputs("b", None)));
        assert!(!Source::Messages.includes(&Source::TwinChanges));
    }
}
