//! Which instance keeps house: `_maintenance/<number>.json` beside the tables.
//!
//! A lease is taken, and taken again by its holder, by writing the file of the next number, which the storage lets one of many
//! do. The highest number counts; lower ones are deleted. Nothing depends on there being one holder only: what maintenance
//! commits holds whoever else is at it, two of them only do some work twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use aggregator_core::maintenance::{Lease, LeaseDecision, decide_lease};
use aggregator_core::{Micros, ProcessingTime};
use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::object_store::{
    Error as StoreError, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions,
};

use crate::sink::delta::{LakeError, Location};

const FOLDER: &str = "_maintenance";

/// A lease that this instance has.
pub(super) struct Held {
    pub(super) lease: Lease,
    /// When its file was written, by the storage's clock.
    pub(super) written_at: ProcessingTime,
}

/// The folder of leases, for one instance.
#[derive(Debug)]
pub(super) struct Leases {
    store: Arc<dyn ObjectStore>,
    owner: String,
    term: Micros,
}

impl Leases {
    /// Opens the folder; a local one is made.
    ///
    /// # Errors
    /// It cannot be made, or the storage's options are wrong.
    pub(super) fn open(location: &Location, owner: &str, term: Micros) -> Result<Self, LakeError> {
        let store = location.store(FOLDER)?.object_store();
        Ok(Self { store, owner: owner.to_owned(), term })
    }

    /// Takes the lease or prolongs it. `None`: another instance has it.
    ///
    /// # Errors
    /// The storage refuses.
    pub(super) async fn take(&self, now: ProcessingTime) -> Result<Option<Held>, LakeError> {
        let found = self.highest().await?;
        let highest = found.as_ref().map(|(number, lease)| (*number, lease));
        let LeaseDecision::Write(number) = decide_lease(highest, &self.owner, now, self.term)
        else {
            return Ok(None);
        };
        let lease = Lease {
            owner: self.owner.clone(),
            until: now.saturating_add(self.term),
            vacuumed_at: found.and_then(|(_, lease)| lease.vacuumed_at),
        };
        let written_at = self.write(number, &lease).await?;
        Ok(written_at.map(|written_at| Held { lease, written_at }))
    }

    /// Writes down what a holder has done, or that it holds no longer.
    ///
    /// # Errors
    /// The storage refuses.
    pub(super) async fn update(&self, lease: &Lease) -> Result<bool, LakeError> {
        let number = match self.highest().await? {
            Some((number, found)) if found.owner == self.owner => number + 1,
            Some(_) | None => return Ok(false),
        };
        Ok(self.write(number, lease).await?.is_some())
    }

    /// `None`: others were faster.
    async fn write(&self, number: u64, lease: &Lease) -> Result<Option<ProcessingTime>, LakeError> {
        let name = file_name(number);
        let failed = |error: &StoreError| lease_error(&name, &error.to_string());
        let bytes =
            serde_json::to_vec(lease).map_err(|error| lease_error(&name, &error.to_string()))?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(&Path::from(name.as_str()), bytes.into(), options).await {
            Ok(_) => {}
            Err(StoreError::AlreadyExists { .. }) => return Ok(None),
            Err(error) => return Err(failed(&error)),
        }
        // Whoever was slow may have written a number that others have passed and deleted.
        let numbers = self.numbers().await?;
        for lower in numbers.keys().filter(|found| **found < number) {
            match self.store.delete(&Path::from(file_name(*lower))).await {
                Ok(()) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        let is_highest = numbers.keys().all(|found| *found <= number);
        Ok(numbers.get(&number).copied().filter(|_| is_highest))
    }

    async fn highest(&self) -> Result<Option<(u64, Lease)>, LakeError> {
        let Some(number) = self.numbers().await?.into_keys().max() else { return Ok(None) };
        let name = file_name(number);
        let got = match self.store.get(&Path::from(name.as_str())).await {
            Ok(got) => got.bytes().await,
            Err(error) => Err(error),
        };
        match got {
            Ok(bytes) => {
                // What cannot be read (a power cut) binds nobody.
                let unreadable = Lease {
                    owner: String::new(),
                    until: ProcessingTime::from_micros(i64::MIN),
                    vacuumed_at: None,
                };
                Ok(Some((number, serde_json::from_slice(&bytes).unwrap_or(unreadable))))
            }
            // Deleted meanwhile, because there is a higher one: the next round sees it.
            Err(StoreError::NotFound { .. }) => Err(lease_error(&name, "was replaced meanwhile")),
            Err(error) => Err(lease_error(&name, &error.to_string())),
        }
    }

    /// All files with their times.
    async fn numbers(&self) -> Result<BTreeMap<u64, ProcessingTime>, LakeError> {
        let listed = self.store.list_with_delimiter(None).await;
        let listed = listed.map_err(|error| lease_error(FOLDER, &error.to_string()))?;
        let files = listed.objects.iter().filter_map(|object| {
            let number = number_of(object.location.filename()?)?;
            let micros = object.last_modified.timestamp_micros();
            Some((number, ProcessingTime::from_micros(micros)))
        });
        Ok(files.collect())
    }
}

fn file_name(number: u64) -> String {
    format!("{number:020}.json")
}

fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".json")?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

fn lease_error(name: &str, text: &str) -> LakeError {
    LakeError::Lease { name: name.to_owned(), text: text.to_owned() }
}
