//! What tells an aggregator that another program writes the lake: a property of `telemetry`.
//!
//! It is set by a commit at exactly the version that was looked at. Whoever has that table open runs into it with the next commit, reads it
//! and stops; whoever starts reads it first. The other program looks at it before each of its commits, for the same reason.

use std::collections::HashMap;

use deltalake::{DeltaTable, DeltaTableError};

use crate::lake_copy::mark::{load_telemetry, set_properties};
use crate::sink::delta::{LakeError, Location};
use crate::sink::rows::TELEMETRY;

/// Property of `telemetry`: which program writes the lake instead of aggregators; empty: none.
pub const HANDED_OVER_TO: &str = "cloud-aggregator.handedOverTo";
/// Property of `telemetry`: when it was handed over, in milliseconds since 1970.
pub const HANDED_OVER_AT: &str = "cloud-aggregator.handedOverAt";
/// The Spark job of deployment-manifests/cloud/databricks.
pub const SPARK: &str = "spark";
/// Nobody: a take-over has begun and not ended.
pub const IN_BETWEEN: &str = "take-over";
/// What the job remembers of sensors (deployment-manifests/cloud/databricks).
pub const JOB_TABLE: &str = "_spark_sensors";
/// Property of that table: the checkpoint that the job writes with.
pub const JOB_CHECKPOINT: &str = "lake-pipeline.checkpoint";
/// Property of that table: the value of [`HANDED_OVER_AT`] that the job began with.
pub const JOB_BEGAN: &str = "lake-pipeline.handedOverAt";
/// So often others may commit before the mark, before it is told that the lake does not hold still.
const ATTEMPTS_MAX: u32 = 100;

/// The mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedOver {
    /// Which program.
    pub to: String,
    /// When, in milliseconds since 1970; `None`: nobody knows.
    pub at_ms: Option<i64>,
}

/// The mark of a table that is loaded.
///
/// # Errors
/// It is not.
pub fn handed_over(table: &DeltaTable) -> Result<Option<HandedOver>, LakeError> {
    let failed = |source: DeltaTableError| LakeError::Table {
        table: TELEMETRY.to_owned(),
        source: Box::new(source),
    };
    let properties = table.snapshot().map_err(failed)?.metadata().configuration();
    let to = properties.get(HANDED_OVER_TO).filter(|to| !to.is_empty());
    let at_ms = properties.get(HANDED_OVER_AT).and_then(|at| at.parse().ok());
    Ok(to.map(|to| HandedOver { to: to.clone(), at_ms }))
}

/// Fails if another program writes the table's lake.
///
/// # Errors
/// One does, or the table is not loaded.
pub fn check_not_handed_over(table: &DeltaTable) -> Result<(), LakeError> {
    match handed_over(table)? {
        Some(HandedOver { to, .. }) if to == IN_BETWEEN => Err(LakeError::TakeOverBegun),
        Some(HandedOver { to, .. }) => Err(LakeError::HandedOver { to }),
        None => Ok(()),
    }
}

/// What the job has written down of itself, in the properties of its own table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// Id of the checkpoint that it writes with.
    pub checkpoint: Option<String>,
    /// When the lake was handed over that it began with, in milliseconds since 1970.
    pub began: Option<String>,
}

/// The job that has written the lake; `None`: there never was one.
///
/// # Errors
/// The storage refuses.
pub async fn job(location: &Location) -> Result<Option<Job>, LakeError> {
    if !location.has_table(JOB_TABLE).await? {
        return Ok(None);
    }
    let failed = |source: DeltaTableError| LakeError::Table {
        table: JOB_TABLE.to_owned(),
        source: Box::new(source),
    };
    let mut table = location.store(JOB_TABLE)?;
    table.load().await.map_err(failed)?;
    let properties = table.snapshot().map_err(failed)?.metadata().configuration();
    let of = |name: &str| properties.get(name).cloned();
    Ok(Some(Job { checkpoint: of(JOB_CHECKPOINT), began: of(JOB_BEGAN) }))
}

/// Sets the mark as it is now, or takes it away. False: the lake did not hold still.
///
/// # Errors
/// The storage refuses, or there is no lake.
pub async fn mark(location: &Location, mark: Option<&HandedOver>) -> Result<bool, LakeError> {
    for _ in 0..ATTEMPTS_MAX {
        let Some(table) = load_telemetry(location).await? else {
            return Err(LakeError::Rows {
                table: TELEMETRY.to_owned(),
                text: "is not there: check lake.location".to_owned(),
            });
        };
        if handed_over(&table)?.as_ref() == mark {
            return Ok(true);
        }
        let at = mark.and_then(|mark| mark.at_ms).map(|at| at.to_string());
        let properties = HashMap::from([
            (HANDED_OVER_TO.to_owned(), mark.map(|mark| mark.to.clone()).unwrap_or_default()),
            (HANDED_OVER_AT.to_owned(), at.unwrap_or_default()),
        ]);
        let version = table.version().unwrap_or(0);
        if set_properties(location, table, version, properties).await? {
            return Ok(true);
        }
    }
    Ok(false)
}
