//! Serde forms that come back bit for bit from any text format.
//!
//! JSON readers may be one unit off in the last place of a number with 17 digits, so numbers that end up in a table
//! are kept as the shortest decimal text that names them. Bytes are kept as hexadecimal text.

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Lower-case hexadecimal text of `bytes`.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0xf)]));
    }
    text
}

/// A number as text, for `#[serde(with = …)]`.
pub mod number {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes the shortest decimal text.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Reads what [`serialize`] wrote.
    ///
    /// # Errors
    /// Not a number, or those of the deserializer.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom(format!("{text:?} is not a number")))
    }
}

/// A number that may be absent as text, for `#[serde(with = …)]`.
pub mod option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Number(#[serde(with = "super::number")] f64);

    /// Writes the number as in [`super::number`], or nothing.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(Number).serialize(serializer)
    }

    /// Reads what [`serialize`] wrote.
    ///
    /// # Errors
    /// Not a number, or those of the deserializer.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<f64>, D::Error> {
        let value = Option::<Number>::deserialize(deserializer)?;
        Ok(value.map(|Number(value)| value))
    }
}

/// Names with numbers as text, for `#[serde(with = …)]`.
pub mod number_map {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Number(#[serde(with = "super::number")] f64);

    /// Writes each number as in [`super::number`].
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(
        map: &BTreeMap<String, f64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(map.iter().map(|(name, value)| (name, Number(*value))))
    }

    /// Reads what [`serialize`] wrote.
    ///
    /// # Errors
    /// Not a number, or those of the deserializer.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, f64>, D::Error> {
        let map = BTreeMap::<String, Number>::deserialize(deserializer)?;
        Ok(map.into_iter().map(|(name, Number(value))| (name, value)).collect())
    }
}

/// Bytes as hexadecimal text, for `#[serde(with = …)]`.
pub mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes two digits a byte.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::to_hex(bytes))
    }

    /// Reads what [`serialize`] wrote.
    ///
    /// # Errors
    /// Not hexadecimal, or those of the deserializer.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> = text
            .chars()
            .map(|character| character.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect();
        match digits {
            Some(digits) if digits.len() % 2 == 0 => {
                Ok(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
            }
            Some(_) | None => Err(D::Error::custom("bytes are not pairs of hexadecimal digits")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Row {
        #[serde(with = "super::number")]
        value: f64,
        #[serde(with = "super::number_map")]
        features: BTreeMap<String, f64>,
        #[serde(with = "super::hex")]
        raw: Vec<u8>,
    }

    proptest! {
        #[test]
        fn numbers_and_bytes_come_back_bit_for_bit(
            value in proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL | proptest::num::f64::ZERO,
            raw: Vec<u8>,
        ) {
            let features = BTreeMap::from([("rms".to_owned(), -value)]);
            let text = serde_json::to_string(&Row { value, features, raw: raw.clone() })?;
            let row: Row = serde_json::from_str(&text)?;
            prop_assert_eq!(row.value.to_bits(), value.to_bits());
            prop_assert_eq!(row.features["rms"].to_bits(), (-value).to_bits());
            prop_assert_eq!(row.raw, raw);
        }
    }

    #[test]
    fn text_that_is_no_number_or_no_bytes_is_refused() {
        for (value, raw) in [("x", ""), ("1", "0"), ("1", "0g"), ("1", "é0")] {
            let text = format!(r#"{{"value":"{value}","features":{{}},"raw":"{raw}"}}"#);
            assert!(serde_json::from_str::<Row>(&text).is_err(), "{text}");
        }
    }
}
