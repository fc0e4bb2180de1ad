//! Several Parquet files as one stream of rows in the order of their keys.
//!
//! Files that an earlier merge has written say so in their footer and are read row group by row group. Others are read whole
//! and sorted in memory, as many of them as the limit allows: what does not fit is left for the next round.

use std::cmp::Ordering;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use deltalake::arrow::array::{ArrayRef, RecordBatch, new_null_array};
use deltalake::arrow::compute::{cast, interleave_record_batch};
use deltalake::arrow::datatypes::SchemaRef;
use deltalake::arrow::error::ArrowError;
use deltalake::arrow::row::{RowConverter, Rows, SortField};
use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::object_store::{Error as StoreError, ObjectStore, ObjectStoreExt as _};
use deltalake::parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReader};
use deltalake::parquet::arrow::async_reader::{
    AsyncFileReader, ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder,
};
use deltalake::parquet::errors::ParquetError;
use deltalake::parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

/// Key of the footer entry that names the columns by which a file is sorted.
pub(super) const SORTED_BY: &str = "cloud-aggregator.sorted-by";
const BATCH_ROWS: usize = 8192;

/// Why files were not merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A file cannot be read.
    #[error("file {path} cannot be read")]
    Read {
        /// Which.
        path: String,
        /// What the reader says.
        #[source]
        source: ParquetError,
    },
    /// A file's columns are not those of the table.
    #[error("file {path} does not fit the columns of the table")]
    Columns {
        /// Which.
        path: String,
        /// What is wrong.
        #[source]
        source: ArrowError,
    },
    /// A file is not sorted as its footer says.
    #[error("file {path} is not sorted by {keys}, though its footer says so")]
    Order {
        /// Which.
        path: String,
        /// The columns.
        keys: String,
    },
}

impl MergeError {
    /// The file.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::Read { path, .. } | Self::Columns { path, .. } | Self::Order { path, .. } => path,
        }
    }

    /// Whether it is the file that is wrong, or gone, and not the storage that does not answer.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Columns { .. } | Self::Order { .. } => true,
            Self::Read { source: ParquetError::External(cause), .. } => {
                matches!(cause.downcast_ref::<StoreError>(), Some(StoreError::NotFound { .. }))
            }
            Self::Read { .. } => true,
        }
    }
}

/// One input.
pub(super) struct InputFile {
    pub(super) path: Path,
    pub(super) bytes: u64,
}

/// Columns of the table without those of the partition, and those that order the rows.
#[derive(Clone)]
pub(super) struct Layout {
    pub(super) schema: SchemaRef,
    pub(super) keys: &'static [&'static str],
}

impl Layout {
    pub(super) fn sorted_by(&self) -> String {
        self.keys.join(",")
    }

    fn converter(&self) -> Result<RowConverter, ArrowError> {
        let field =
            |key: &&str| Ok(SortField::new(self.schema.field_with_name(key)?.data_type().clone()));
        RowConverter::new(self.keys.iter().map(field).collect::<Result<_, ArrowError>>()?)
    }

    fn key_columns(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>, ArrowError> {
        let places = self.keys.iter().map(|key| self.schema.index_of(key));
        places.map(|place| Ok(Arc::clone(batch.column(place?)))).collect()
    }

    /// Columns that the file lacks are empty: it is older than they are.
    fn conform(&self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let column = |field: &Arc<deltalake::arrow::datatypes::Field>| match batch
            .column_by_name(field.name())
        {
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
            Some(column) if column.data_type() == field.data_type() => Ok(Arc::clone(column)),
            Some(column) => cast(column, field.data_type()),
        };
        let columns = self.schema.fields().iter().map(column).collect::<Result<_, _>>()?;
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
    }
}

/// Reads ranges of one object.
struct Reader {
    store: Arc<dyn ObjectStore>,
    path: Path,
    bytes: u64,
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl AsyncFileReader for Reader {
    fn get_bytes(
        &mut self,
        range: Range<u64>,
    ) -> BoxFuture<'_, Result<bytes::Bytes, ParquetError>> {
        Box::pin(async move {
            let got = self.store.get_range(&self.path, range).await;
            got.map_err(|error| ParquetError::External(Box::new(error)))
        })
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        Box::pin(async move {
            let bytes = self.bytes;
            let reader = ParquetMetaDataReader::new().with_prefetch_hint(Some(64 * 1024));
            Ok(Arc::new(reader.load_and_finish(self, bytes).await?))
        })
    }
}

enum Rest {
    Stream { stream: ParquetRecordBatchStream<Reader>, group: Option<ParquetRecordBatchReader> },
    Sorted { batches: Vec<RecordBatch>, order: std::vec::IntoIter<(usize, usize)> },
}

/// An input and the batch of it that is being taken.
struct Cursor {
    path: Path,
    rest: Rest,
    /// Keys of the batch; `None`: the input is at its end.
    keys: Option<Rows>,
    /// Place of the batch in [`Merge::batches`].
    slot: usize,
    row: usize,
}

/// The merge.
pub(super) struct Merge {
    layout: Layout,
    converter: RowConverter,
    cursors: Vec<Cursor>,
    /// Cursors with rows, as a binary heap: the least row on top.
    heap: Vec<usize>,
    /// Batches that rows not given out yet refer to.
    batches: Vec<RecordBatch>,
    inputs: usize,
}

impl Merge {
    /// Opens as many of `files` as fit into the memory, in their order.
    ///
    /// # Errors
    /// A file cannot be read or does not fit.
    pub(super) async fn open(
        store: &Arc<dyn ObjectStore>,
        layout: Layout,
        files: &[InputFile],
        memory_bytes_max: usize,
    ) -> Result<Self, MergeError> {
        let converter = layout.converter().map_err(|source| MergeError::Columns {
            path: files.first().map(|file| file.path.to_string()).unwrap_or_default(),
            source,
        })?;
        let mut merge = Self {
            layout,
            converter,
            cursors: Vec::new(),
            heap: Vec::new(),
            batches: Vec::new(),
            inputs: 0,
        };
        let mut room = memory_bytes_max;
        for file in files {
            let Some(rest) = merge.open_one(store, file, &mut room).await? else { break };
            merge.inputs += 1;
            let path = file.path.clone();
            merge.cursors.push(Cursor { path, rest, keys: None, slot: 0, row: 0 });
        }
        for place in 0..merge.cursors.len() {
            if merge.next_batch(place).await? {
                merge.heap.push(place);
                merge.sift_up();
            }
        }
        Ok(merge)
    }

    /// How many of the files take part: the first ones.
    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    async fn open_one(
        &mut self,
        store: &Arc<dyn ObjectStore>,
        file: &InputFile,
        room: &mut usize,
    ) -> Result<Option<Rest>, MergeError> {
        let path = file.path.to_string();
        let failed = |source| MergeError::Read { path: path.clone(), source };
        let reader =
            Reader { store: Arc::clone(store), path: file.path.clone(), bytes: file.bytes };
        let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(failed)?;
        let entries = builder.metadata().file_metadata().key_value_metadata();
        let sorted_by = self.layout.sorted_by();
        let is_sorted = entries.is_some_and(|entries| {
            entries.iter().any(|entry| {
                entry.key == SORTED_BY && entry.value.as_deref() == Some(sorted_by.as_str())
            })
        });
        let mut stream = builder.with_batch_size(BATCH_ROWS).build().map_err(failed)?;
        if is_sorted {
            return Ok(Some(Rest::Stream { stream, group: None }));
        }
        let mut batches = Vec::new();
        let mut used = 0;
        while let Some(group) = stream.next_row_group().await.map_err(failed)? {
            for batch in group {
                let batch = self.read(&file.path, batch)?;
                used += batch.get_array_memory_size();
                if used > *room {
                    return Ok(None);
                }
                batches.push(batch);
            }
        }
        *room -= used;
        let order = self.order(&batches).map_err(|source| MergeError::Columns { path, source })?;
        Ok(Some(Rest::Sorted { batches, order: order.into_iter() }))
    }

    fn read(
        &self,
        path: &Path,
        batch: Result<RecordBatch, ArrowError>,
    ) -> Result<RecordBatch, MergeError> {
        batch
            .and_then(|batch| self.layout.conform(&batch))
            .map_err(|source| MergeError::Columns { path: path.to_string(), source })
    }

    /// Places of all rows in the order of their keys; rows of equal keys stay in theirs.
    fn order(&mut self, batches: &[RecordBatch]) -> Result<Vec<(usize, usize)>, ArrowError> {
        let mut keys = Vec::with_capacity(batches.len());
        for batch in batches {
            keys.push(self.converter.convert_columns(&self.layout.key_columns(batch)?)?);
        }
        let rows = batches.iter().enumerate();
        let mut order: Vec<(usize, usize)> = rows
            .flat_map(|(place, batch)| (0..batch.num_rows()).map(move |row| (place, row)))
            .collect();
        order.sort_by(|left, right| keys[left.0].row(left.1).cmp(&keys[right.0].row(right.1)));
        Ok(order)
    }

    /// The next rows; `None` after the last.
    ///
    /// # Errors
    /// A file cannot be read, does not fit, or is not sorted as it says.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>, MergeError> {
        let mut taken: Vec<(usize, usize)> = Vec::with_capacity(BATCH_ROWS);
        while taken.len() < BATCH_ROWS {
            let Some(&least) = self.heap.first() else { break };
            let cursor = &mut self.cursors[least];
            taken.push((cursor.slot, cursor.row));
            cursor.row += 1;
            let rows = cursor.keys.as_ref().map_or(0, Rows::num_rows);
            if cursor.row == rows && !self.next_batch(least).await? {
                self.heap.swap_remove(0);
            }
            self.sift_down();
        }
        if taken.is_empty() {
            return Ok(None);
        }
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let merged = interleave_record_batch(&batches, &taken).map_err(|source| {
            MergeError::Columns { path: self.cursors[0].path.to_string(), source }
        })?;
        self.forget_batches();
        Ok(Some(merged))
    }

    /// Keeps the batches that cursors stand in.
    fn forget_batches(&mut self) {
        let mut kept = Vec::with_capacity(self.cursors.len());
        for cursor in &mut self.cursors {
            if cursor.keys.is_some() {
                kept.push(self.batches[cursor.slot].clone());
                cursor.slot = kept.len() - 1;
            }
        }
        self.batches = kept;
    }

    /// Moves a cursor to its next batch with rows; false at the end.
    async fn next_batch(&mut self, place: usize) -> Result<bool, MergeError> {
        let path = self.cursors[place].path.clone();
        let columns = |source| MergeError::Columns { path: path.to_string(), source };
        let next = match &mut self.cursors[place].rest {
            Rest::Sorted { batches, order } => {
                let rows: Vec<(usize, usize)> = order.take(BATCH_ROWS).collect();
                let batches: Vec<&RecordBatch> = batches.iter().collect();
                match rows.is_empty() {
                    true => None,
                    false => Some(interleave_record_batch(&batches, &rows).map_err(columns)?),
                }
            }
            Rest::Stream { stream, group } => {
                let read = next_of_stream(stream, group)
                    .await
                    .map_err(|source| MergeError::Read { path: path.to_string(), source })?;
                read.map(|batch| self.read(&path, batch)).transpose()?
            }
        };
        let cursor = &mut self.cursors[place];
        let before = cursor.keys.take();
        let Some(batch) = next else {
            // Its memory is not needed any more.
            cursor.rest = Rest::Sorted { batches: Vec::new(), order: Vec::new().into_iter() };
            return Ok(false);
        };
        let keys = self.layout.key_columns(&batch).map_err(columns)?;
        let keys = self.converter.convert_columns(&keys).map_err(columns)?;
        if !is_ascending(before.as_ref(), &keys) {
            let keys = self.layout.sorted_by();
            return Err(MergeError::Order { path: path.to_string(), keys });
        }
        self.batches.push(batch);
        cursor.slot = self.batches.len() - 1;
        cursor.row = 0;
        cursor.keys = Some(keys);
        Ok(true)
    }

    fn compare(&self, left: usize, right: usize) -> Ordering {
        let key = |place: usize| {
            let cursor = &self.cursors[place];
            cursor.keys.as_ref().map(|keys| keys.row(cursor.row))
        };
        // Of equal keys the input that comes first wins: the order is the same in each run.
        key(left).cmp(&key(right)).then(left.cmp(&right))
    }

    fn sift_up(&mut self) {
        let mut child = self.heap.len() - 1;
        while child > 0 {
            let parent = (child - 1) / 2;
            if self.compare(self.heap[parent], self.heap[child]).is_le() {
                break;
            }
            self.heap.swap(parent, child);
            child = parent;
        }
    }

    fn sift_down(&mut self) {
        let mut parent = 0;
        loop {
            let children = [2 * parent + 1, 2 * parent + 2];
            let least = children
                .into_iter()
                .filter(|child| *child < self.heap.len())
                .min_by(|left, right| self.compare(self.heap[*left], self.heap[*right]));
            match least {
                Some(child) if self.compare(self.heap[child], self.heap[parent]).is_lt() => {
                    self.heap.swap(parent, child);
                    parent = child;
                }
                Some(_) | None => break,
            }
        }
    }
}

/// `None` at the end; row groups without rows are passed over.
async fn next_of_stream(
    stream: &mut ParquetRecordBatchStream<Reader>,
    group: &mut Option<ParquetRecordBatchReader>,
) -> Result<Option<Result<RecordBatch, ArrowError>>, ParquetError> {
    loop {
        if let Some(batch) = group.as_mut().and_then(Iterator::next) {
            return Ok(Some(batch));
        }
        *group = stream.next_row_group().await?;
        if group.is_none() {
            return Ok(None);
        }
    }
}

fn is_ascending(before: Option<&Rows>, keys: &Rows) -> bool {
    let last = before.and_then(|keys| keys.num_rows().checked_sub(1).map(|row| keys.row(row)));
    let first = (keys.num_rows() > 0).then(|| keys.row(0));
    let joins = match (last, first) {
        (Some(last), Some(first)) => last <= first,
        (None, _) | (_, None) => true,
    };
    joins && (1..keys.num_rows()).all(|row| keys.row(row - 1) <= keys.row(row))
}
