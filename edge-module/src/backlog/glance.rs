//! Finds the elements of a JSON array of readings, with sensor and value, without parsing them: some bytes a nanosecond, where
//! decoding a reading takes a microsecond. It may find what is no JSON; whatever is judged is decoded after it.

/// What can be seen of one element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Glance<'a> {
    /// Its bytes.
    pub(super) element: &'a [u8],
    /// Where the rest of the payload begins.
    pub(super) end: usize,
    /// A key or the sensor's name holds an escape sequence: only decoding tells what it is.
    pub(super) is_odd: bool,
    sensor: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
}

impl<'a> Glance<'a> {
    /// Name of the sensor, if it has one.
    pub(super) fn sensor(&self) -> Option<&'a str> {
        let text = self.sensor?.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        std::str::from_utf8(text).ok()
    }

    /// The value, if it is a number.
    pub(super) fn value(&self) -> Option<f64> {
        std::str::from_utf8(self.value?).ok()?.parse().ok()
    }
}

/// The next object of the array, or the object that the payload is. Elements that are no objects are passed over. `None` at the
/// end, and where there is no JSON to be seen.
pub(super) fn next_element(payload: &[u8], offset: usize) -> Option<Glance<'_>> {
    let mut at = offset;
    loop {
        at += payload
            .get(at..)?
            .iter()
            .position(|byte| !(byte.is_ascii_whitespace() || matches!(byte, b',' | b'[')))?;
        match payload.get(at)? {
            b'{' => return object(payload, at),
            b']' | b'}' | b':' => return None,
            _ => at = value_end(payload, at)?,
        }
    }
}

fn object(payload: &[u8], start: usize) -> Option<Glance<'_>> {
    let (mut sensor, mut value, mut is_odd) = (None, None, false);
    let mut at = start + 1;
    loop {
        at = skip_space(payload, at);
        match payload.get(at)? {
            b'}' => {
                let end = at + 1;
                return Some(Glance { element: &payload[start..end], end, is_odd, sensor, value });
            }
            b',' => at += 1,
            b'"' => {
                let key_end = string_end(payload, at)?;
                let key = &payload[at + 1..key_end - 1];
                at = skip_space(payload, key_end);
                if payload.get(at)? != &b':' {
                    return None;
                }
                at = skip_space(payload, at + 1);
                let end = value_end(payload, at)?;
                let text = &payload[at..end];
                match key {
                    b"sensor_id" => {
                        is_odd |= text.contains(&b'\\');
                        sensor = Some(text);
                    }
                    b"value" => value = Some(text),
                    _ => is_odd |= key.contains(&b'\\'),
                }
                at = end;
            }
            _ => return None,
        }
    }
}

fn skip_space(payload: &[u8], at: usize) -> usize {
    let rest = payload.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// After the closing quote of the string that begins at `at`.
fn string_end(payload: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        at += payload.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        match payload.get(at)? {
            b'"' => return Some(at + 1),
            _ => at += 2,
        }
    }
}

/// After the value that begins at `at`.
fn value_end(payload: &[u8], at: usize) -> Option<usize> {
    match payload.get(at)? {
        b'"' => string_end(payload, at),
        b'{' | b'[' => {
            let (mut depth, mut at) = (0_usize, at);
            loop {
                at += payload
                    .get(at..)?
                    .iter()
                    .position(|byte| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']'))?;
                match payload.get(at)? {
                    b'"' => {
                        at = string_end(payload, at)?;
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    _ => depth -= 1,
                }
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
        }
        _ => {
            let is_end =
                |byte: &u8| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace();
            Some(at + payload.get(at..)?.iter().position(is_end)?)
        }
    }
}
