//! Work that waits its turn: one bounded queue for each key (a sensor), served one item at a time, key by key.
//!
//! However much one key brings, another key's next item is served after at most one item of each key that waits. A queue that
//! is full gives back its own oldest item, never one of another key; what becomes of it is the caller's decision. Limits:
//! items and weight (bytes) for each key, and the number of keys that wait at the same time.

use std::collections::{BTreeMap, VecDeque};

/// Limits of a [`FairQueue`]; all at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FairLimits {
    /// Items of one key.
    pub items_max: usize,
    /// Weight of one key's items; a single heavier item is kept as long as it is alone.
    pub weight_max: usize,
    /// Keys that wait at the same time.
    pub keys_max: usize,
}

/// Bounded queues that are served in turn.
#[derive(Debug)]
pub struct FairQueue<K, T> {
    limits: FairLimits,
    waiting: BTreeMap<K, Waiting<T>>,
    /// Each key that waits, once; the next to be served in front.
    turns: VecDeque<K>,
}

#[derive(Debug)]
struct Waiting<T> {
    items: VecDeque<(usize, T)>,
    weight: usize,
}

impl<K: Ord + Clone, T> FairQueue<K, T> {
    /// An empty queue.
    #[must_use]
    pub const fn new(limits: FairLimits) -> Self {
        Self { limits, waiting: BTreeMap::new(), turns: VecDeque::new() }
    }

    /// Puts an item at the end of its key's queue and gives back what no longer fits: the oldest of that key, or the item
    /// itself when too many keys wait.
    #[must_use = "what does not fit is the caller's to judge"]
    pub fn push(&mut self, key: K, weight: usize, item: T) -> Vec<T> {
        if !self.waiting.contains_key(&key) {
            if self.waiting.len() >= self.limits.keys_max {
                return vec![item];
            }
            self.turns.push_back(key.clone());
        }
        let queue = self.waiting.entry(key).or_insert_with(Waiting::empty);
        queue.items.push_back((weight, item));
        queue.weight += weight;
        let mut excess = Vec::new();
        while queue.items.len() > 1
            && (queue.items.len() > self.limits.items_max || queue.weight > self.limits.weight_max)
        {
            excess.extend(queue.take_oldest());
        }
        excess
    }

    /// Takes the oldest item of the key whose turn it is.
    pub fn pop(&mut self) -> Option<(K, T)> {
        let key = self.turns.pop_front()?;
        let queue = self.waiting.get_mut(&key)?;
        let item = queue.take_oldest()?;
        if queue.items.is_empty() {
            self.waiting.remove(&key);
        } else {
            self.turns.push_back(key.clone());
        }
        Some((key, item))
    }

    /// Puts the rest of an item that was just taken back as the oldest of its key; its turn is over. Not refused: it was
    /// counted before.
    pub fn put_back(&mut self, key: K, weight: usize, item: T) {
        let queue = self.waiting.entry(key.clone()).or_insert_with(|| {
            self.turns.push_back(key);
            Waiting::empty()
        });
        queue.items.push_front((weight, item));
        queue.weight += weight;
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Items that wait, of all keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.values().map(|queue| queue.items.len()).sum()
    }

    /// Whether something of this key waits.
    #[must_use]
    pub fn waits(&self, key: &K) -> bool {
        self.waiting.contains_key(key)
    }
}

impl<T> Waiting<T> {
    const fn empty() -> Self {
        Self { items: VecDeque::new(), weight: 0 }
    }

    fn take_oldest(&mut self) -> Option<T> {
        let (weight, item) = self.items.pop_front()?;
        self.weight -= weight;
        Some(item)
    }
}

#[cfg(test)]
mod tests;
