use std::path::PathBuf;

use aggregator_core::AlertState;
use aggregator_core::checkpoint::SideTable;
use aggregator_core::window::ClosedBy;
use deltalake::kernel::{DataType, PrimitiveType, StructField};
use shared_proto::model::{MachineEventType, OutcomeVerdict, Quality};

use super::changes::{Change, Weight, changes, least_version};
use super::*;
use crate::sink::maintenance::table_names;
use crate::sink::rows;

fn contract() -> Contract {
    Contract::parse(TEXT).expect("the committed contract")
}

fn table<'a>(contract: &'a Contract, name: &str) -> &'a Table {
    let found = contract.schema.iter().find(|table| table.name == name);
    found.unwrap_or_else(|| panic!("the contract has no table {name}"))
}

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Names, Delta types and partitions of the tables as the program makes them.
fn written(name: &str) -> (Vec<StructField>, Vec<String>) {
    match name {
        rows::TELEMETRY => (rows::telemetry_columns(), rows::reading_partitions()),
        rows::CURRENT_WINDOWS => (rows::current_columns(), vec![rows::OWNER.to_owned()]),
        _ => {
            let side = SideTable::ALL.into_iter().find(|table| table.as_str() == name);
            rows::side_columns(side.unwrap_or_else(|| panic!("nobody writes the table {name}")))
        }
    }
}

fn type_name(kind: &DataType) -> String {
    if let DataType::Primitive(PrimitiveType::Timestamp) = kind {
        return "timestamp".to_owned();
    }
    if let DataType::Map(map) = kind {
        return format!("map<{},{}>", type_name(map.key_type()), type_name(map.value_type()));
    }
    if let DataType::Struct(fields) = kind {
        let field =
            |field: &StructField| format!("{}:{}", field.name(), type_name(&field.data_type));
        return format!("struct<{}>", fields.fields().map(field).collect::<Vec<_>>().join(","));
    }
    kind.to_string()
}

#[test]
fn every_table_that_is_written_stands_in_the_contract_column_by_column() {
    let contract = contract();
    let mut expected: Vec<&str> = table_names().to_vec();
    let mut described: Vec<&str> = contract.schema.iter().map(|table| &*table.name).collect();
    expected.sort_unstable();
    described.sort_unstable();
    assert_eq!(described, expected);
    for table in &contract.schema {
        let (columns, partitions) = written(&table.name);
        let types = columns.iter().map(|it| (it.name().clone(), type_name(&it.data_type)));
        let described = table.columns.iter().map(|it| (it.name.clone(), it.physical_type.clone()));
        assert_eq!(described.collect::<Vec<_>>(), types.collect::<Vec<_>>(), "{}", table.name);
        assert_eq!(table.partitions(), partitions, "{}", table.name);
        assert!(columns.iter().all(StructField::is_nullable), "{}", table.name);
        for column in &table.columns {
            assert!(column.description.ends_with('.'), "{}.{}", table.name, column.name);
        }
    }
}

#[test]
fn closed_sets_of_words_are_those_of_the_code() {
    let contract = contract();
    let check = |name: &str, column: &str, expected: &[&str]| {
        let found = table(&contract, name).columns.iter().find(|it| it.name == column);
        let words = found.and_then(Column::values).unwrap_or_default();
        assert_eq!(words, expected, "{name}.{column}");
    };
    check("machine_events", "event_type", &MachineEventType::ALL.map(MachineEventType::as_str));
    check("outcomes", "verdict", &OutcomeVerdict::ALL.map(OutcomeVerdict::as_str));
    check("alerts", "state", &[AlertState::Fired, AlertState::Resolved].map(AlertState::as_str));
    let qualities = [Quality::Good, Quality::Uncertain, Quality::Bad].map(Quality::as_str);
    check("telemetry", "quality", &qualities);
    check("late_readings", "quality", &qualities);
    let reasons = [ClosedBy::Watermark, ClosedBy::Idle, ClosedBy::Correction, ClosedBy::Open];
    check("anomalies", "closed_by", &reasons.map(ClosedBy::as_str));
    check("current_windows", "closed_by", &reasons.map(ClosedBy::as_str));
}

#[test]
fn the_dictionary_is_made_of_the_contract() {
    let path = here().join("TABLES.md");
    let expected = dictionary::markdown(&contract());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &expected).expect("written");
    }
    let found = std::fs::read_to_string(&path).expect("TABLES.md");
    assert!(found == expected, "TABLES.md is old: UPDATE_GOLDEN=1 writes it");
}

#[test]
fn what_a_reader_would_feel_raises_the_version() {
    let mut released = Vec::new();
    for entry in std::fs::read_dir(here().join("contract/released")).expect("a folder") {
        let path = entry.expect("readable").path();
        let text = std::fs::read_to_string(&path).expect("readable");
        let contract = Contract::parse(&text).unwrap_or_else(|error| panic!("{error}: {path:?}"));
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        assert_eq!(name, format!("{}.odcs.json", contract.version()));
        released.push((contract.version(), contract));
    }
    let (newest, old) = released.iter().max_by_key(|(version, _)| *version).expect("one at least");
    let found = changes(old, &contract());
    let least = least_version(*newest, &found);
    let texts: Vec<String> = found.iter().map(Change::to_string).collect();
    assert!(
        contract().version() >= least,
        "since version {newest} there are changes, so the version has to be {least} at least: {texts:#?}"
    );
}

/// The contract with one text in place of another, in the table of that name.
fn changed(name: &str, from: &str, to: &str) -> Contract {
    let start = TEXT.find(&format!("\"name\": \"{name}\", \"logicalType\": \"object\""));
    let start = start.or_else(|| TEXT.find(&format!("\"name\": \"{name}\",\n")));
    let (before, after) = TEXT.split_at(start.expect("the table"));
    assert!(after.contains(from), "{name} has no {from}");
    Contract::parse(&format!("{before}{}", after.replacen(from, to, 1))).expect("a contract")
}

#[test]
fn a_change_weighs_what_a_reader_feels() {
    let check = |new: &Contract, weight: Weight, text: &str| {
        let found = changes(&contract(), new);
        let texts: Vec<(Weight, String)> =
            found.iter().map(|change| (change.weight, change.to_string())).collect();
        assert_eq!(texts, [(weight, text.to_owned())]);
    };
    let edit = |from, to| changed("telemetry", from, to);
    let double = r#""logicalType": "number", "physicalType": "double", "required": true"#;
    let may_be_null = double.replace("true", "false");
    check(&edit(double, &may_be_null), Weight::Breaking, "telemetry.value: may be null now");
    let float = double.replace("double", "float");
    let text = "telemetry.value: type was double, is float";
    check(&edit(double, &float), Weight::Breaking, text);
    let text = "telemetry.quality: no value \"uncertain\" any more";
    check(&edit(r#""uncertain", "#, ""), Weight::Breaking, text);
    let text = "telemetry.quality: a new value \"odd\"";
    check(&edit(r#""uncertain", "#, r#""uncertain", "odd", "#), Weight::Addition, text);
    let text = "telemetry.value: unit was that of the column unit, is V";
    check(&edit(r#""that of the column unit""#, r#""V""#), Weight::Breaking, text);
    let text = "telemetry.sensor_id: description was Who measured., is Which sensor.";
    check(&edit("Who measured.", "Which sensor."), Weight::Text, text);

    let mut fewer = contract();
    let column = fewer.schema[0].columns.remove(4);
    check(&fewer, Weight::Breaking, &format!("telemetry.{}: the column is gone", column.name));
    let found = changes(&fewer, &contract());
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].weight, &*found[0].what), (Weight::Addition, "the column is new"));
    let table = fewer.schema.remove(0);
    assert_eq!(changes(&contract(), &fewer)[0].what, "the table is gone");
    fewer.schema = vec![table];
    let swapped =
        changed("telemetry", r#""partitionKeyPosition": 1"#, r#""partitionKeyPosition": 3"#);
    let text = "telemetry: partitioned by was date, metric_type, is metric_type, date";
    check(&swapped, Weight::Breaking, text);
    let key = changed("telemetry", r#""primaryKeyPosition": 3"#, r#""primaryKeyPosition": 0"#);
    let text = "telemetry: primary key was source_topic, source_partition, source_offset, \
                is source_offset, source_topic, source_partition";
    check(&key, Weight::Breaking, text);
    assert_eq!(changes(&contract(), &contract()), []);
}

#[test]
fn the_least_version_follows_the_heaviest_change() {
    let old = Version { major: 1, minor: 4, patch: 2 };
    let change = |weight| Change { weight, place: "a".to_owned(), what: "b".to_owned() };
    let least = |weights: &[Weight]| {
        let changes: Vec<Change> = weights.iter().copied().map(change).collect();
        least_version(old, &changes).to_string()
    };
    assert_eq!(least(&[]), "1.4.2");
    assert_eq!(least(&[Weight::Text]), "1.4.3");
    assert_eq!(least(&[Weight::Text, Weight::Addition]), "1.5.0");
    assert_eq!(least(&[Weight::Breaking, Weight::Addition]), "2.0.0");
}

#[test]
fn a_version_is_three_numbers() {
    for version in ["1.0", "1.0.0.0", "one", "", "1.0.-1"] {
        let written = format!("\"version\": \"{}\"", contract().version());
        let text = TEXT.replacen(&written, &format!("\"version\": {version:?}"), 1);
        let error = Contract::parse(&text).expect_err(version).to_string();
        assert!(error.contains(&format!("{version:?}")), "{error}");
    }
}
