//! Reads the lake back without the program that wrote it: the log is JSON, the files it names are Parquet.
//!
//! Delta's protocol, "Actions": a table's rows are those of the files that were added and not removed since.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, ensure};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::Value;

/// A row: values by column, JSON numbers for integers (timestamps in microseconds) and floats.
pub type TableRow = BTreeMap<String, Value>;

/// All rows of the table in `folder`; none if there is no table yet.
///
/// # Errors
/// The log has a hole or names a file that cannot be read.
pub fn read_table(folder: &Path) -> anyhow::Result<Vec<TableRow>> {
    let mut rows = Vec::new();
    for (path, partition) in active_files(folder)? {
        let file = folder.join(percent_decoded(&path));
        read_file(&file, &partition, &mut rows)
            .with_context(|| format!("reading {}", file.display()))?;
    }
    Ok(rows)
}

/// Files that hold the table's rows, each with the values of its partition.
fn active_files(folder: &Path) -> anyhow::Result<BTreeMap<String, TableRow>> {
    let mut files = BTreeMap::new();
    for version in 0_u64.. {
        let commit = folder.join(format!("_delta_log/{version:020}.json"));
        if !commit.exists() {
            let next = folder.join(format!("_delta_log/{:020}.json", version + 1));
            ensure!(!next.exists(), "{} is missing", commit.display());
            break;
        }
        for line in std::fs::read_to_string(&commit)?.lines() {
            let action: Value = serde_json::from_str(line)?;
            if let Some(path) = action["remove"]["path"].as_str() {
                files.remove(path);
            }
            if let Some(path) = action["add"]["path"].as_str() {
                let values = action["add"]["partitionValues"].as_object();
                let values = values.into_iter().flatten();
                let partition = values.map(|(name, value)| (name.clone(), value.clone())).collect();
                let before = files.insert(path.to_owned(), partition);
                ensure!(before.is_none(), "{path} is added twice");
            }
        }
    }
    Ok(files)
}

/// The log holds paths as URLs do.
fn percent_decoded(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let code = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, code) {
            (b'%', Some(code)) => {
                bytes.push(code);
                rest = &tail[2..];
            }
            (&byte, _) => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn read_file(path: &Path, partition: &TableRow, rows: &mut Vec<TableRow>) -> anyhow::Result<()> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    for row in reader.get_row_iter(None)? {
        let mut values = partition.clone();
        add_columns(&row?, &mut values);
        rows.push(values);
    }
    Ok(())
}

fn add_columns(row: &Row, values: &mut TableRow) {
    for (name, field) in row.get_column_iter() {
        values.insert(name.clone(), value_of(field));
    }
}

/// Nested columns are left out: nothing here asks for them.
#[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum with thirty kinds")]
fn value_of(field: &Field) -> Value {
    match field {
        Field::Bool(value) => Value::from(*value),
        Field::Int(value) => Value::from(*value),
        Field::Long(value) | Field::TimestampMicros(value) => Value::from(*value),
        Field::Double(value) => Value::from(*value),
        Field::Str(value) => Value::from(value.as_str()),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    fn write_file(path: &Path, rows: &[(&str, i64, f64)]) {
        let schema = "message row { required binary sensor_id (UTF8); \
                      required int64 timestamp (TIMESTAMP(MICROS,true)); required double value; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::default());
        let file = File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let names: Vec<ByteArray> = rows.iter().map(|row| ByteArray::from(row.0)).collect();
        let times: Vec<i64> = rows.iter().map(|row| row.1).collect();
        let values: Vec<f64> = rows.iter().map(|row| row.2).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&names, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&times, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<DoubleType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn only_files_that_the_log_holds_are_read_and_partitions_come_from_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("_delta_log");
        std::fs::create_dir(&log).unwrap();
        assert!(read_table(dir.path()).unwrap().is_empty());
        write_file(&dir.path().join("a b.parquet"), &[("s", 7, 1.5), ("t", 8, 2.5)]);
        write_file(&dir.path().join("gone.parquet"), &[("x", 1, 0.0)]);
        write_file(&dir.path().join("orphan.parquet"), &[("y", 1, 0.0)]);
        let commit = |version: u64, text: &str| {
            std::fs::write(log.join(format!("{version:020}.json")), text).unwrap();
        };
        commit(
            0,
            "{\"protocol\":{}}\n{\"add\":{\"path\":\"gone.parquet\",\"partitionValues\":{}}}\n",
        );
        commit(
            1,
            "{\"remove\":{\"path\":\"gone.parquet\"}}\n\
             {\"add\":{\"path\":\"a%20b.parquet\",\"partitionValues\":{\"date\":\"2026-03-01\"}}}\n",
        );
        let rows = read_table(dir.path()).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["sensor_id"], "s");
        assert_eq!(rows[0]["timestamp"], 7);
        assert_eq!(rows[1]["value"], 2.5);
        assert_eq!(rows[1]["date"], "2026-03-01");
        commit(3, "{}\n");
        assert!(read_table(dir.path()).is_err(), "version 2 is missing");
    }
}
