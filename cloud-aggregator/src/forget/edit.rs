//! What becomes of rows when a sensor or a person is forgotten: pure, on batches.

use std::collections::BTreeMap;
use std::sync::Arc;

use aggregator_core::checkpoint::{SideTable, TopicPartition};
use deltalake::arrow::array::{Array as _, ArrayRef, BooleanArray, StringArray};
use deltalake::arrow::compute::filter_record_batch;
use deltalake::arrow::error::ArrowError;
use deltalake::arrow::record_batch::RecordBatch;
use serde_json::Value;

use crate::lake_reader::{Row, text_at};
use crate::sink::rows::{CURRENT_WINDOWS, TELEMETRY};

/// What stands in a text where a name stood.
pub const FORGOTTEN: &str = "(forgotten)";
/// What people's names follow in `alerts.suppressed_by`.
const SHELVED_BY: &str = "shelved:";
/// Columns that name the Kafka record of a row.
const SOURCE_COLUMNS: [&str; 2] = ["source_topic", "source_partition"];

/// Who is to be forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// A sensor: rows about it are deleted.
    Sensor(String),
    /// A person: the name is taken out of the rows, what was found stays.
    Person(String),
}

/// What happens to the rows of one table.
#[derive(Clone, Debug)]
pub struct Edit {
    whom: Whom,
    table: &'static str,
}

/// Rows of one batch, file or table that are deleted or changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Rows that are deleted.
    pub deleted: u64,
    /// Rows of which a text is changed.
    pub changed: u64,
    /// Deleted rows by the Kafka partition of their records, in tables that tell it.
    pub records: BTreeMap<TopicPartition, u64>,
}

impl Touched {
    /// Whether any row is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.deleted == 0 && self.changed == 0
    }

    /// Adds those of another batch.
    pub fn add(&mut self, other: &Self) {
        self.deleted += other.deleted;
        self.changed += other.changed;
        for (partition, records) in &other.records {
            *self.records.entry(partition.clone()).or_default() += records;
        }
    }
}

impl Edit {
    /// What happens to the rows of that table.
    #[must_use]
    pub fn new(whom: &Whom, table: &'static str) -> Self {
        Self { whom: whom.clone(), table }
    }

    /// Columns that have to be read to know which rows are touched.
    #[must_use]
    pub fn columns(&self) -> Vec<&'static str> {
        let mut columns = SOURCE_COLUMNS.to_vec();
        if self.table == SideTable::DeadLetters.as_str() {
            columns.extend(["raw", "detail"]);
        } else {
            match &self.whom {
                Whom::Sensor(_) => columns.push("sensor_id"),
                Whom::Person(_) => {
                    columns.extend(self.names());
                    columns.extend(self.texts());
                }
            }
        }
        columns
    }

    /// Columns that hold a person's name and nothing else.
    fn names(&self) -> &'static [&'static str] {
        if self.table == SideTable::Outcomes.as_str() {
            &["reported_by"]
        } else if self.table == SideTable::MachineEvents.as_str() {
            &["operator"]
        } else if self.table == SideTable::Alerts.as_str() {
            &["suppressed_by"]
        } else {
            &[]
        }
    }

    /// Columns in which a person's name may stand among other words.
    fn texts(&self) -> &'static [&'static str] {
        if self.table == SideTable::Outcomes.as_str() {
            &["note", "part"]
        } else if [SideTable::MachineEvents, SideTable::Alerts]
            .map(SideTable::as_str)
            .contains(&self.table)
        {
            &["detail"]
        } else {
            &[]
        }
    }

    /// Members of a refused record that may hold the name.
    fn fields_of_letters(&self) -> &'static [&'static str] {
        match self.whom {
            Whom::Sensor(_) => &["sensor_id"],
            Whom::Person(_) => &["reported_by", "operator", "note"],
        }
    }

    /// Whether rows of the table can be touched at all.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        let is_of_readings = [TELEMETRY, CURRENT_WINDOWS].contains(&self.table)
            || [SideTable::Anomalies, SideTable::LateReadings, SideTable::Waveforms]
                .map(SideTable::as_str)
                .contains(&self.table);
        match self.whom {
            Whom::Sensor(_) => true,
            Whom::Person(_) => !is_of_readings,
        }
    }

    /// The rows that stay, with the texts that stay. A column that the batch does not have holds nobody's name.
    ///
    /// # Errors
    /// The columns do not fit together.
    pub fn apply(&self, batch: &RecordBatch) -> Result<(RecordBatch, Touched), ArrowError> {
        let mut touched = Touched::default();
        let row = Row(batch);
        let mut keep = vec![true; batch.num_rows()];
        for (at, keep) in keep.iter_mut().enumerate() {
            *keep = !self.is_deleted(row, at);
            if *keep {
                continue;
            }
            touched.deleted += 1;
            let topic = text_at(row.texts(SOURCE_COLUMNS[0]), at);
            let partition = row.integers(SOURCE_COLUMNS[1]).map(|numbers| numbers.value(at));
            if let (Some(topic), Some(partition)) = (topic, partition) {
                let from = TopicPartition { topic: topic.to_owned(), partition };
                *touched.records.entry(from).or_default() += 1;
            }
        }
        let kept = match touched.deleted {
            0 => batch.clone(),
            _ => filter_record_batch(batch, &BooleanArray::from(keep))?,
        };
        let kept = self.without_names(kept, &mut touched)?;
        Ok((kept, touched))
    }

    fn is_deleted(&self, row: Row<'_>, at: usize) -> bool {
        if self.table == SideTable::DeadLetters.as_str() {
            let (Whom::Sensor(name) | Whom::Person(name)) = &self.whom;
            let fields = self.fields_of_letters();
            let raw = row.bytes("raw").map(|raw| raw.value(at)).unwrap_or_default();
            let detail = text_at(row.texts("detail"), at).unwrap_or_default();
            return holds_field(raw, fields, name) || quotes(detail, name);
        }
        match &self.whom {
            Whom::Sensor(name) => text_at(row.texts("sensor_id"), at) == Some(name),
            Whom::Person(_) => false,
        }
    }

    fn without_names(
        &self,
        batch: RecordBatch,
        touched: &mut Touched,
    ) -> Result<RecordBatch, ArrowError> {
        let Whom::Person(person) = &self.whom else { return Ok(batch) };
        let mut is_changed = vec![false; batch.num_rows()];
        let mut columns = batch.columns().to_vec();
        let places = self.names().iter().map(|name| (*name, true));
        for (name, is_name) in places.chain(self.texts().iter().map(|name| (*name, false))) {
            let Some((place, _)) = batch.schema_ref().column_with_name(name) else { continue };
            let Some(texts) = Row(&batch).texts(name) else { continue };
            let without = |text: &str| match is_name {
                true => without_name(text, person),
                false => replaced(text, person).map(Some),
            };
            columns[place] = changed(texts, without, &mut is_changed);
        }
        touched.changed += is_changed.into_iter().filter(|it| *it).count() as u64;
        RecordBatch::try_new(batch.schema(), columns)
    }
}

/// The column with what `without` makes of each text; `None` of it leaves the text as it is.
fn changed(
    texts: &StringArray,
    without: impl Fn(&str) -> Option<Option<String>>,
    is_changed: &mut [bool],
) -> ArrayRef {
    let values = (0..texts.len()).map(|at| {
        let text = text_at(Some(texts), at)?;
        match without(text) {
            None => Some(text.to_owned()),
            Some(new) => {
                is_changed[at] = true;
                new
            }
        }
    });
    Arc::new(values.collect::<StringArray>())
}

/// What a column of names holds instead, if it names the person.
fn without_name(text: &str, person: &str) -> Option<Option<String>> {
    if text == person {
        return Some(None);
    }
    let shelved_by = text.strip_prefix(SHELVED_BY)?;
    (shelved_by == person).then(|| Some(format!("{SHELVED_BY}{FORGOTTEN}")))
}

/// The text with every place of the name, as whole words, taken out; `None` if it stands nowhere.
fn replaced(text: &str, name: &str) -> Option<String> {
    let mut rest = text;
    let mut result = String::new();
    let mut is_found = false;
    while let Some(at) = rest.find(name) {
        let (before, after) = (&rest[..at], &rest[at + name.len()..]);
        let last = before.chars().next_back().or_else(|| result.chars().next_back());
        result.push_str(before);
        if is_in_word(last) || is_in_word(after.chars().next()) {
            result.push_str(name);
        } else {
            result.push_str(FORGOTTEN);
            is_found = true;
        }
        rest = after;
    }
    result.push_str(rest);
    is_found.then_some(result)
}

/// Names of machines and sensors have hyphens.
fn is_in_word(neighbour: Option<char>) -> bool {
    neighbour.is_some_and(|letter| letter.is_alphanumeric() || ['-', '_'].contains(&letter))
}

/// Whether a sentence of ours names it, between quotation marks.
fn quotes(detail: &str, name: &str) -> bool {
    detail.contains(&Value::from(name).to_string())
}

/// Whether a record holds the name in one of these members: as JSON, whatever is escaped in it; as bytes that are no JSON (cut off, or
/// wrong) behind the name of such a member; as protobuf behind the length of the name.
fn holds_field(raw: &[u8], fields: &[&str], name: &str) -> bool {
    if let Ok(value) = serde_json::from_slice::<Value>(raw) {
        return holds_value(&value, fields, name);
    }
    let holds = |part: &[u8]| raw.windows(part.len()).any(|window| window == part);
    let quoted = Value::from(name).to_string();
    let is_member = |field: &&str| {
        [format!("\"{field}\":{quoted}"), format!("\"{field}\": {quoted}")]
            .iter()
            .any(|member| holds(member.as_bytes()))
    };
    fields.iter().any(is_member) || holds_counted(raw, name)
}

/// Whether a member of that name, at any depth, is the name or a text with it.
fn holds_value(value: &Value, fields: &[&str], name: &str) -> bool {
    match value {
        Value::Object(members) => members.iter().any(|(key, value)| {
            let is_text = |text: &str| text == name || replaced(text, name).is_some();
            let is_it = fields.contains(&key.as_str()) && value.as_str().is_some_and(is_text);
            is_it || holds_value(value, fields, name)
        }),
        Value::Array(values) => values.iter().any(|value| holds_value(value, fields, name)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Whether the name stands behind its length, as protobuf writes a text.
fn holds_counted(raw: &[u8], name: &str) -> bool {
    // Lengths from 128 on take two bytes.
    let length = match u8::try_from(name.len()) {
        Ok(length) if length < 0x80 => vec![length],
        _ => vec![(name.len() & 0x7f | 0x80) as u8, (name.len() >> 7) as u8],
    };
    let counted = [length.as_slice(), name.as_bytes()].concat();
    raw.windows(counted.len()).any(|window| window == counted)
}

#[cfg(test)]
mod tests {
    use deltalake::arrow::array::{BinaryArray, Int32Array};
    use deltalake::arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter(columns).expect("columns of one length")
    }

    fn texts(values: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    fn strings(batch: &RecordBatch, name: &str) -> Vec<Option<String>> {
        let column = Row(batch).texts(name).expect("a column of texts");
        (0..column.len()).map(|at| text_at(Some(column), at).map(str::to_owned)).collect()
    }

    #[test]
    fn rows_of_a_sensor_are_deleted_and_counted_by_their_partition() {
        let rows = batch(vec![
            ("sensor_id", texts(&[Some("a"), Some("ab"), None, Some("a"), Some("a")])),
            ("source_topic", texts(&[Some("t"), Some("t"), Some("t"), Some("t"), Some("u")])),
            ("source_partition", Arc::new(Int32Array::from(vec![0, 0, 0, 1, 0]))),
        ]);
        let edit = Edit::new(&Whom::Sensor("a".to_owned()), TELEMETRY);
        let (kept, touched) = edit.apply(&rows).expect("applied");
        assert_eq!(strings(&kept, "sensor_id"), [Some("ab".to_owned()), None]);
        assert_eq!((touched.deleted, touched.changed), (3, 0));
        let records: Vec<(String, u64)> =
            touched.records.iter().map(|(from, count)| (from.to_string(), *count)).collect();
        assert_eq!(records, [("t/0".into(), 1), ("t/1".into(), 1), ("u/0".into(), 1)]);
        assert!(
            Edit::new(&Whom::Sensor("b".to_owned()), TELEMETRY)
                .apply(&rows)
                .expect("applied")
                .1
                .is_empty()
        );
        let empty = RecordBatch::new_empty(Arc::new(Schema::new(vec![Field::new(
            "sensor_id",
            DataType::Utf8,
            true,
        )])));
        assert!(edit.apply(&empty).expect("applied").1.is_empty());
    }

    #[test]
    fn of_a_person_the_name_goes_and_the_row_stays() {
        let rows = batch(vec![
            ("reported_by", texts(&[Some("Ann"), Some("Anna"), None])),
            ("note", texts(&[Some("seen by Ann, not Anna"), None, Some("ask Ann")])),
            ("verdict", texts(&[Some("confirmed"), Some("note"), Some("note")])),
        ]);
        let edit = Edit::new(&Whom::Person("Ann".to_owned()), SideTable::Outcomes.as_str());
        let (kept, touched) = edit.apply(&rows).expect("applied");
        assert_eq!((touched.deleted, touched.changed, kept.num_rows()), (0, 2, 3));
        assert_eq!(strings(&kept, "reported_by"), [None, Some("Anna".to_owned()), None]);
        let notes = strings(&kept, "note");
        assert_eq!(notes[0].as_deref(), Some("seen by (forgotten), not Anna"));
        assert_eq!(notes[2].as_deref(), Some("ask (forgotten)"));
        assert_eq!(strings(&kept, "verdict"), strings(&rows, "verdict"));

        let rows =
            batch(vec![("suppressed_by", texts(&[Some("shelved:Ann"), Some("maintenance:Ann")]))]);
        let edit = Edit::new(&Whom::Person("Ann".to_owned()), SideTable::Alerts.as_str());
        let (kept, touched) = edit.apply(&rows).expect("applied");
        assert_eq!(touched.changed, 1);
        let expected = ["shelved:(forgotten)", "maintenance:Ann"].map(|text| Some(text.to_owned()));
        assert_eq!(strings(&kept, "suppressed_by"), expected);
        for table in [TELEMETRY, CURRENT_WINDOWS, SideTable::Waveforms.as_str()] {
            assert!(!Edit::new(&Whom::Person("Ann".to_owned()), table).is_possible());
        }
    }

    #[test]
    fn letters_go_that_hold_the_name_as_a_whole_field() {
        let check = |raw: &[u8], detail: &str, name: &str, expected: u64| {
            let rows = batch(vec![
                ("raw", Arc::new(BinaryArray::from(vec![raw])) as ArrayRef),
                ("detail", texts(&[Some(detail)])),
            ]);
            let edit = Edit::new(&Whom::Sensor(name.to_owned()), SideTable::DeadLetters.as_str());
            let touched = edit.apply(&rows).expect("applied").1;
            assert_eq!(touched.deleted, expected, "{raw:?} {detail} {name}");
        };
        check(br#"{"sensor_id":"press-1/a","value":1}"#, "", "press-1/a", 1);
        check(br#"{"sensor_id":"press-1/ab","value":1}"#, "", "press-1/a", 0);
        check(br#"{"sensor_id":"press-1\/a","value":1}"#, "", "press-1/a", 1);
        check(br#"{"sensor_id":"w\u00e4lz"}"#, "", "w\u{e4}lz", 1);
        check(br#"[{"more":{"sensor_id":"a"}}]"#, "", "a", 1);
        // Keys, other members and our own words are nobody's name.
        check(br#"{"sensor_id":"a","metric_type":"temperature"}"#, "", "temperature", 0);
        check(br#"{"timestamp":"x"}"#, "field `timestamp` is missing", "value", 0);
        check(br#"{"sensor_id":"b","machine_id":"press-1"}"#, "", "press-1", 0);
        check(br#"{"sensor_id": "a", "value": "#, "", "a", 1);
        check(br#"{"machine_id": "a", "value": "#, "", "a", 0);
        check(b"\x0a\x09press-1/a\x12", "", "press-1/a", 1);
        check(b"\x0a\x0apress-1/ab\x12", "", "press-1/a", 0);
        check(b"", "value of \"press-1/a\" is no number", "press-1/a", 1);
        check(b"", "value of press-1/a is no number", "press-1/a", 0);
        let long = "x".repeat(200);
        check(format!("{{\"sensor_id\":\"{long}\"}}").as_bytes(), "", &long, 1);
        let counted = [&[0x0a, 0xc8, 0x01], long.as_bytes()].concat();
        check(&counted, "", &long, 1);
    }

    #[test]
    fn words_are_taken_out_whole() {
        assert_eq!(
            replaced("Bo and Bob, (Bo)", "Bo").as_deref(),
            Some("(forgotten) and Bob, ((forgotten))")
        );
        assert_eq!(replaced("Bob", "Bo"), None);
        assert_eq!(replaced("Bo-Ann", "Bo"), None);
        assert_eq!(replaced("BoBo", "Bo"), None);
        assert_eq!(replaced("", "Bo"), None);
    }
}
