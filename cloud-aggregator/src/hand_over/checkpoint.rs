//! Where a Spark job has come to, by its checkpoint folder.
//!
//! Structured Streaming writes `offsets/<batch>` before a batch and `commits/<batch>` after it: a line with the version of the form, a line of
//! metadata, and a line for each source, which of a Kafka source is `{"topic":{"partition":offset}}`, the offsets being the first that are
//! not in the batch. `metadata` has the id of the query (Spark, `OffsetSeqLog`, `CommitLog` and `JsonUtils.partitionOffsets`).

use std::collections::BTreeMap;

use aggregator_core::checkpoint::TopicPartition;
use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::object_store::{Error as StoreError, ObjectStore, ObjectStoreExt as _};

use crate::config;
use crate::sink::delta::{LakeError, Location};

const OFFSETS: &str = "offsets";
const COMMITS: &str = "commits";
const METADATA: &str = "metadata";
/// The form that is known.
const VERSION: &str = "v1";

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The storage refuses.
    #[error("checkpoint {checkpoint}")]
    Lake {
        /// Which.
        checkpoint: String,
        /// What the storage says.
        #[source]
        source: LakeError,
    },
    /// A file cannot be read.
    #[error("checkpoint {checkpoint}: {file} cannot be read: {text}")]
    File {
        /// Which.
        checkpoint: String,
        /// Its file.
        file: String,
        /// What is wrong.
        text: String,
    },
    /// There is no batch.
    #[error(
        "checkpoint {checkpoint} has no batch: give the folder of the job's checkpointLocation, the one that has `offsets` and `commits`"
    )]
    Empty {
        /// Which.
        checkpoint: String,
    },
    /// A batch was begun.
    #[error(
        "batch {batch} of the job was begun and has not ended: start the job once more with its trigger available-now and let it end, \
         then come again (checkpoint {checkpoint})"
    )]
    Unfinished {
        /// Which.
        checkpoint: String,
        /// Its number.
        batch: u64,
    },
}

/// What a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparkCheckpoint {
    /// Its name: that of the query, made with the folder.
    pub id: String,
    /// The last batch.
    pub batch: u64,
    /// The first offset of each partition that is in no batch.
    pub offsets: BTreeMap<TopicPartition, i64>,
}

impl SparkCheckpoint {
    /// Reads a checkpoint folder, with the storage options of the lake.
    ///
    /// # Errors
    /// There is none, it cannot be read, or its last batch has not ended.
    pub async fn read(lake: &config::Lake, checkpoint: &str) -> Result<Self, CheckpointError> {
        let name = || checkpoint.to_owned();
        let failed = |source| CheckpointError::Lake { checkpoint: name(), source };
        let place = config::Lake { location: name(), ..lake.clone() };
        let location = Location::existing(&place).map_err(failed)?;
        let store = location.store("").map_err(failed)?.object_store();
        let begun = newest(&*store, OFFSETS, checkpoint).await?;
        let Some(batch) = begun else { return Err(CheckpointError::Empty { checkpoint: name() }) };
        if newest(&*store, COMMITS, checkpoint).await? != Some(batch) {
            return Err(CheckpointError::Unfinished { checkpoint: name(), batch });
        }
        let file = format!("{OFFSETS}/{batch}");
        let fault =
            |text: String| CheckpointError::File { checkpoint: name(), file: file.clone(), text };
        let reading = async { store.get(&Path::from(file.as_str())).await?.bytes().await };
        let bytes = reading.await.map_err(|error| fault(error.to_string()))?;
        let text = std::str::from_utf8(&bytes).map_err(|error| fault(error.to_string()))?;
        let offsets = parse(text).map_err(fault)?;
        Ok(Self { id: read_id(&*store, checkpoint).await?, batch, offsets })
    }
}

async fn read_id(store: &dyn ObjectStore, checkpoint: &str) -> Result<String, CheckpointError> {
    #[derive(serde::Deserialize)]
    struct Query {
        id: String,
    }
    let fault = |text: String| CheckpointError::File {
        checkpoint: checkpoint.to_owned(),
        file: METADATA.to_owned(),
        text,
    };
    let reading = async { store.get(&Path::from(METADATA)).await?.bytes().await };
    let bytes = reading.await.map_err(|error| fault(error.to_string()))?;
    let query: Query = serde_json::from_slice(&bytes).map_err(|error| fault(error.to_string()))?;
    Ok(query.id)
}

/// The highest batch that has a file in a folder.
async fn newest(
    store: &dyn ObjectStore,
    folder: &str,
    checkpoint: &str,
) -> Result<Option<u64>, CheckpointError> {
    let listed = match store.list_with_delimiter(Some(&Path::from(folder))).await {
        Ok(listed) => listed,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => {
            let (checkpoint, file) = (checkpoint.to_owned(), folder.to_owned());
            return Err(CheckpointError::File { checkpoint, file, text: error.to_string() });
        }
    };
    let numbers = listed.objects.iter().filter_map(|object| object.location.filename());
    Ok(numbers.filter_map(|name| name.parse().ok()).max())
}

fn parse(text: &str) -> Result<BTreeMap<TopicPartition, i64>, String> {
    let mut lines = text.lines();
    let version = lines.next().unwrap_or_default();
    if version != VERSION {
        return Err(format!("it has the form {version:?}, {VERSION:?} is known"));
    }
    let mut offsets = BTreeMap::new();
    // The first line is about the query; "-" is a source that had nothing yet.
    for line in lines.skip(1).filter(|line| *line != "-") {
        let source: BTreeMap<String, BTreeMap<String, i64>> = serde_json::from_str(line)
            .map_err(|error| format!("{line:?} has no offsets of Kafka: {error}"))?;
        for (topic, partitions) in source {
            for (partition, offset) in partitions {
                let name = format!("{topic}/{partition}");
                let partition =
                    TopicPartition::try_from(name).map_err(|error| error.to_string())?;
                if offset < 0 {
                    return Err(format!("{partition} has the offset {offset}"));
                }
                if offsets.insert(partition.clone(), offset).is_some() {
                    return Err(format!("{partition} is read by two sources of the job"));
                }
            }
        }
    }
    if offsets.is_empty() {
        return Err("it names no partition of Kafka".to_owned());
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        r#"{"batchWatermarkMs":0,"batchTimestampMs":1772352000000,"conf":{"a":"b"}}"#;

    #[test]
    fn offsets_of_all_sources_are_found() {
        let text = format!(
            "v1\n{LINE}\n{{\"temperature\":{{\"1\":7,\"0\":12}},\"a/b\":{{\"0\":0}}}}\n-\n{{\"machine-events\":{{\"0\":3}}}}"
        );
        let found = parse(&text).expect("offsets");
        let found: Vec<_> =
            found.iter().map(|(partition, offset)| (partition.to_string(), *offset)).collect();
        let expected =
            [("a/b/0", 0), ("machine-events/0", 3), ("temperature/0", 12), ("temperature/1", 7)];
        assert_eq!(found, expected.map(|(name, offset)| (name.to_owned(), offset)));
    }

    #[test]
    fn what_is_no_log_of_offsets_says_why() {
        let check = |text: &str, expected: &str| {
            let error = parse(text).expect_err(text);
            assert!(error.contains(expected), "{text:?}: {error}");
        };
        check("", "form \"\"");
        check("v2\n{}\n{\"t\":{\"0\":1}}", "form \"v2\"");
        check(&format!("v1\n{LINE}"), "no partition");
        check(&format!("v1\n{LINE}\n-"), "no partition");
        check(&format!("v1\n{LINE}\n17"), "no offsets of Kafka");
        check(&format!("v1\n{LINE}\n{{\"t\":{{\"x\":1}}}}"), "is not a topic and a partition");
        check(&format!("v1\n{LINE}\n{{\"t\":{{\"0\":-2}}}}"), "offset -2");
        let twice = "{\"t\":{\"0\":1}}";
        check(&format!("v1\n{LINE}\n{twice}\n{twice}"), "two sources");
    }

    #[tokio::test]
    async fn a_batch_that_has_not_ended_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, format!("v1\n{LINE}\n{{\"t\":{{\"0\":1}}}}")).expect("written");
        };
        let lake = crate::config::Settings::load(None).expect("defaults").lake;
        let checkpoint = folder.path().display().to_string();
        let read = || SparkCheckpoint::read(&lake, &checkpoint);
        assert!(matches!(read().await, Err(CheckpointError::Empty { .. })));
        write("offsets/9");
        write("offsets/.10.crc");
        write("commits/8");
        assert!(matches!(read().await, Err(CheckpointError::Unfinished { batch: 9, .. })));
        write("commits/9");
        write("offsets/10.tmp");
        let error = read().await.expect_err("it has no name");
        assert!(error.to_string().contains("metadata cannot be read"), "{error}");
        std::fs::write(folder.path().join("metadata"), r#"{"id":"job-1"}"#).expect("written");
        assert_eq!(read().await.expect("read").id, "job-1");
        assert_eq!(read().await.expect("read").batch, 9);
        write("offsets/10");
        assert!(matches!(read().await, Err(CheckpointError::Unfinished { batch: 10, .. })));
    }
}
