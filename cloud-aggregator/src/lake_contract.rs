//! The contract of the lake: what a reader of the tables may rely on.
//!
//! `contract/lake.odcs.json` is the one description of every table, an Open Data Contract Standard document (v3, bitol.io). It is
//! compiled in, so that a program can say what it writes; tests hold the code's own schemas, `TABLES.md`, the SQL views, the Power BI
//! model and the Spark job against it. Versions that were released lie in `contract/released` and never change: [`changes`] compares
//! with the newest of them and says by how much the version has to go up.

pub mod changes;
pub mod dictionary;

use serde::Deserialize;
use serde_json::Value;

/// The contract as it is committed.
pub const TEXT: &str = include_str!("../contract/lake.odcs.json");

/// What is wrong with a contract.
#[derive(Debug, thiserror::Error)]
pub enum ContractError {
    /// It is no such document.
    #[error("the contract is not as the Open Data Contract Standard has it")]
    Document(#[from] serde_json::Error),
    /// Its version is not three numbers.
    #[error("the version {version:?} of the contract is not three numbers, such as 1.2.0")]
    Version {
        /// As it stands there.
        version: String,
    },
}

/// Version of a contract: a reader may have to change, may find something new, or need not look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Goes up when a reader may have to change.
    pub major: u32,
    /// Goes up when there is something new.
    pub minor: u32,
    /// Goes up when only texts change.
    pub patch: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { major, minor, patch } = self;
        write!(formatter, "{major}.{minor}.{patch}")
    }
}

/// The document, as far as it is about tables.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contract {
    version: String,
    /// The tables.
    pub schema: Vec<Table>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// Name of its folder.
    pub name: String,
    /// What it holds.
    pub description: String,
    /// What a row is.
    pub data_granularity_description: String,
    /// Its columns, in order.
    #[serde(rename = "properties")]
    pub columns: Vec<Column>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type to the standard.
    pub logical_type: String,
    /// Its Delta type, with the fields of structs and maps.
    pub physical_type: String,
    /// The aggregator never writes null.
    pub required: bool,
    /// Place among the partition columns, from 1.
    pub partition_key_position: Option<u32>,
    /// Place among the columns that name a row, from 1.
    pub primary_key_position: Option<u32>,
    /// What it says.
    pub description: String,
    /// What the standard has no place for: `unit`, and the `values` that there are.
    #[serde(default)]
    pub custom_properties: Vec<CustomProperty>,
}

/// What the standard has no place for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct CustomProperty {
    /// Its name.
    pub property: String,
    /// What it is.
    pub value: Value,
}

impl Contract {
    /// Reads a document.
    ///
    /// # Errors
    /// It is none, or its version is not three numbers.
    pub fn parse(text: &str) -> Result<Self, ContractError> {
        let contract: Self = serde_json::from_str(text)?;
        contract.read_version()?;
        Ok(contract)
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.read_version().expect("looked at when it was parsed")
    }

    fn read_version(&self) -> Result<Version, ContractError> {
        let fault = || ContractError::Version { version: self.version.clone() };
        let numbers: Result<Vec<u32>, _> = self.version.split('.').map(str::parse).collect();
        let [major, minor, patch] = numbers.map_err(|_| fault())?[..] else { return Err(fault()) };
        Ok(Version { major, minor, patch })
    }
}

impl Table {
    /// Names of its partition columns, in order.
    #[must_use]
    pub fn partitions(&self) -> Vec<&str> {
        self.by_position(|column| column.partition_key_position)
    }

    /// Names of the columns that name a row, in order; none where several rows may tell of one thing.
    #[must_use]
    pub fn primary_key(&self) -> Vec<&str> {
        self.by_position(|column| column.primary_key_position)
    }

    fn by_position(&self, position: fn(&Column) -> Option<u32>) -> Vec<&str> {
        let columns = self.columns.iter();
        let mut placed: Vec<(u32, &str)> =
            columns.filter_map(|column| Some((position(column)?, column.name.as_str()))).collect();
        placed.sort_unstable();
        placed.into_iter().map(|(_, name)| name).collect()
    }
}

impl Column {
    /// Unit of its values, if it has one.
    #[must_use]
    pub fn unit(&self) -> Option<&str> {
        self.custom("unit").and_then(Value::as_str)
    }

    /// The words that there are, if they are a closed set.
    #[must_use]
    pub fn values(&self) -> Option<Vec<&str>> {
        let values = self.custom("values")?.as_array()?;
        Some(values.iter().filter_map(Value::as_str).collect())
    }

    fn custom(&self, name: &str) -> Option<&Value> {
        let found = self.custom_properties.iter().find(|custom| custom.property == name);
        found.map(|custom| &custom.value)
    }
}

#[cfg(test)]
mod tests;
