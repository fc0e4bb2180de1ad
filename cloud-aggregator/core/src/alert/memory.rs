//! A map with a limit that knows in which order its entries were put in.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Entries by key, each with the number under which it was put in last. Saved as a list, in order of these numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Memory<K, V> {
    entries: BTreeMap<K, (u64, V)>,
    order: BTreeMap<u64, K>,
}

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), order: BTreeMap::new() }
    }
}

impl<K: Clone + Ord, V> Memory<K, V> {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(_, value)| value)
    }

    /// In order of keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, (_, value))| (key, value))
    }

    /// From this key on, in order of keys.
    pub(super) fn range_from(&self, first: K) -> impl Iterator<Item = (&K, &V)> {
        self.entries.range(first..).map(|(key, (_, value))| (key, value))
    }

    /// In order of keys.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.values_mut().map(|(_, value)| value)
    }

    /// Puts an entry in as the newest.
    pub(super) fn put(&mut self, key: K, value: V) {
        self.remove(&key);
        let number = self.order.last_key_value().map_or(0, |(last, _)| last + 1);
        self.order.insert(number, key.clone());
        self.entries.insert(key, (number, value));
    }

    /// As [`Self::put`]; beyond `limit` entries the oldest are forgotten.
    pub(super) fn put_within(&mut self, limit: usize, key: K, value: V) {
        self.put(key, value);
        while self.len() > limit {
            let Some(oldest) = self.oldest().cloned() else { return };
            self.remove(&oldest);
        }
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (number, value) = self.entries.remove(key)?;
        self.order.remove(&number);
        Some(value)
    }

    /// The key that was put in longest ago.
    pub(super) fn oldest(&self) -> Option<&K> {
        self.order.first_key_value().map(|(_, key)| key)
    }
}

impl<K: Ord + Serialize, V: Serialize> Serialize for Memory<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entries = self.order.iter().filter_map(|(number, key)| {
            self.entries.get(key).map(|(_, value)| (number, key, value))
        });
        serializer.collect_seq(entries)
    }
}

impl<'de, K, V> Deserialize<'de> for Memory<K, V>
where
    K: Clone + Ord + Deserialize<'de>,
    V: Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut memory = Self::default();
        for (number, key, value) in Vec::<(u64, K, V)>::deserialize(deserializer)? {
            let is_new = memory.order.insert(number, key.clone()).is_none();
            // So that the next number exists.
            if number == u64::MAX
                || !is_new
                || memory.entries.insert(key, (number, value)).is_some()
            {
                return Err(D::Error::custom(format!("entry {number} of the alerts stands twice")));
            }
        }
        Ok(memory)
    }
}
