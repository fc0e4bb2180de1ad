//! Rows of the side tables on their way into an epoch's commit.

use aggregator_core::checkpoint::{PendingRows, SideTable, TopicPartition};
use deltalake::arrow::record_batch::RecordBatch;

use super::super::delta::{LakeError, Table};
use super::super::rows;

/// The rows of all partitions for one table.
pub(super) fn side_batch(
    side: SideTable,
    table: &Table,
    with_rows: &[(&TopicPartition, &PendingRows)],
) -> Result<RecordBatch, LakeError> {
    let schema = table.schema();
    let batch = match side {
        SideTable::Anomalies => {
            rows::anomaly_batch(schema, &all(with_rows, |rows| &rows.anomalies))
        }
        SideTable::Alerts => rows::alert_batch(schema, &all(with_rows, |rows| &rows.alerts)),
        SideTable::LateReadings => {
            rows::late_batch(schema, &with_source(with_rows, |rows| &rows.late_readings))
        }
        SideTable::MachineEvents => {
            rows::machine_event_batch(schema, &with_source(with_rows, |rows| &rows.machine_events))
        }
        SideTable::DeadLetters => {
            rows::dead_letter_batch(schema, &with_source(with_rows, |rows| &rows.dead_letters))
        }
        SideTable::Outcomes => {
            rows::outcome_batch(schema, &with_source(with_rows, |rows| &rows.outcomes))
        }
        SideTable::Waveforms => {
            rows::waveform_batch(schema, &with_source(with_rows, |rows| &rows.waveforms))
        }
    };
    batch.map_err(|source| LakeError::Columns { table: side.as_str().to_owned(), source })
}

fn all<'a, T>(
    with_rows: &[(&TopicPartition, &'a PendingRows)],
    of: impl Fn(&'a PendingRows) -> &'a Vec<T>,
) -> Vec<&'a T> {
    with_rows.iter().flat_map(|(_, rows)| of(rows)).collect()
}

fn with_source<'a, T>(
    with_rows: &[(&'a TopicPartition, &'a PendingRows)],
    of: impl Fn(&'a PendingRows) -> &'a Vec<T>,
) -> Vec<(&'a TopicPartition, &'a T)> {
    with_rows.iter().flat_map(|(from, rows)| of(rows).iter().map(|row| (*from, row))).collect()
}

#[cfg(test)]
impl super::Lake {
    /// Appends rows as another program does: no `txn` tells of them.
    pub(crate) async fn append_side_rows(
        &mut self,
        partition: &TopicPartition,
        rows: &PendingRows,
    ) -> Result<(), LakeError> {
        use aggregator_core::checkpoint::{EpochId, Nonce};
        use deltalake::writer::DeltaWriter as _;
        let tables = self.tables()?;
        for side in SideTable::ALL.into_iter().filter(|side| rows.count(*side) > 0) {
            let table = tables.side_tables.get_mut(&side).expect("every side table is opened");
            let batch = side_batch(side, table, &[(partition, rows)])?;
            let mut writer = table.writer(1 << 20)?;
            writer.write(batch).await.expect("encoded");
            let adds = writer.flush().await.expect("flushed");
            table.append(adds, &[], EpochId::first(Nonce(0))).await?;
        }
        Ok(())
    }
}
