//! What a reader feels of a change of the contract, and by how much its version has to go up for it.

use std::collections::BTreeMap;

use super::{Column, Contract, Table, Version};

/// What a change is to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Nothing but texts: the patch number goes up.
    Text,
    /// Something is new, and what was there holds: the minor number goes up.
    Addition,
    /// A query that worked may fail, or mean something else: the major number goes up.
    Breaking,
}

/// A change between two contracts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// How much it is.
    pub weight: Weight,
    /// The table, or the table and the column.
    pub place: String,
    /// What has changed.
    pub what: String,
}

impl std::fmt::Display for Change {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.place, self.what)
    }
}

/// Every change from `old` to `new`, in the order of the tables of `old`, new tables last.
#[must_use]
pub fn changes(old: &Contract, new: &Contract) -> Vec<Change> {
    let mut found = Found(Vec::new());
    let after: BTreeMap<&str, &Table> = by_name(&new.schema);
    for table in &old.schema {
        match after.get(table.name.as_str()) {
            None => found.add(Weight::Breaking, &table.name, "the table is gone".to_owned()),
            Some(after) => found.table(table, after),
        }
    }
    let before = by_name(&old.schema);
    for table in new.schema.iter().filter(|table| !before.contains_key(table.name.as_str())) {
        found.add(Weight::Addition, &table.name, "the table is new".to_owned());
    }
    found.0
}

/// The least version that a contract with these changes may have.
#[must_use]
pub fn least_version(old: Version, changes: &[Change]) -> Version {
    let Version { major, minor, patch } = old;
    match changes.iter().map(|change| change.weight).max() {
        None => old,
        Some(Weight::Text) => Version { major, minor, patch: patch + 1 },
        Some(Weight::Addition) => Version { major, minor: minor + 1, patch: 0 },
        Some(Weight::Breaking) => Version { major: major + 1, minor: 0, patch: 0 },
    }
}

fn by_name(tables: &[Table]) -> BTreeMap<&str, &Table> {
    tables.iter().map(|table| (table.name.as_str(), table)).collect()
}

struct Found(Vec<Change>);

impl Found {
    fn add(&mut self, weight: Weight, place: &str, what: String) {
        self.0.push(Change { weight, place: place.to_owned(), what });
    }

    fn differs(&mut self, weight: Weight, place: &str, name: &str, sides: [String; 2]) {
        let [old, new] = sides;
        if old != new {
            self.add(weight, place, format!("{name} was {old}, is {new}"));
        }
    }

    fn table(&mut self, old: &Table, new: &Table) {
        let place = &old.name;
        let lists = [old.partitions(), new.partitions()].map(|names| names.join(", "));
        self.differs(Weight::Breaking, place, "partitioned by", lists);
        let keys = [old.primary_key(), new.primary_key()].map(|names| names.join(", "));
        self.differs(Weight::Breaking, place, "primary key", keys);
        let rows = [old, new].map(|table| table.data_granularity_description.clone());
        // What a row is decides what a sum over rows means.
        self.differs(Weight::Breaking, place, "a row", rows);
        let texts = [old, new].map(|table| table.description.clone());
        self.differs(Weight::Text, place, "description", texts);
        let after = |name: &str| new.columns.iter().find(|column| column.name == name);
        for column in &old.columns {
            let place = format!("{place}.{}", column.name);
            match after(&column.name) {
                None => self.add(Weight::Breaking, &place, "the column is gone".to_owned()),
                Some(after) => self.column(&place, column, after),
            }
        }
        let before = |name: &str| old.columns.iter().any(|column| column.name == name);
        for column in new.columns.iter().filter(|column| !before(&column.name)) {
            let place = format!("{place}.{}", column.name);
            self.add(Weight::Addition, &place, "the column is new".to_owned());
        }
    }

    fn column(&mut self, place: &str, old: &Column, new: &Column) {
        let types = [old, new].map(|column| column.physical_type.clone());
        self.differs(Weight::Breaking, place, "type", types);
        let types = [old, new].map(|column| column.logical_type.clone());
        self.differs(Weight::Breaking, place, "logical type", types);
        let unit = |column: &Column| column.unit().unwrap_or("without").to_owned();
        self.differs(Weight::Breaking, place, "unit", [unit(old), unit(new)]);
        match (old.required, new.required) {
            (true, false) => self.add(Weight::Breaking, place, "may be null now".to_owned()),
            (false, true) => self.add(Weight::Addition, place, "is never null now".to_owned()),
            (true, true) | (false, false) => {}
        }
        self.words(place, old, new);
        let texts = [old, new].map(|column| column.description.clone());
        self.differs(Weight::Text, place, "description", texts);
    }

    fn words(&mut self, place: &str, old: &Column, new: &Column) {
        let (Some(before), Some(after)) = (old.values(), new.values()) else {
            let has = |column: &Column| column.values().map_or("open", |_| "closed").to_owned();
            return self.differs(Weight::Breaking, place, "set of values", [has(old), has(new)]);
        };
        for word in before.iter().filter(|word| !after.contains(word)) {
            self.add(Weight::Breaking, place, format!("no value {word:?} any more"));
        }
        for word in after.iter().filter(|word| !before.contains(word)) {
            self.add(Weight::Addition, place, format!("a new value {word:?}"));
        }
    }
}
