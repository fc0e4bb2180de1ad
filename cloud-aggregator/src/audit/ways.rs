//! Records that came by a hub and by Kafka. A record that was undecided when an edge module changed its way is sent on the other one too,
//! and each partition knows repeats of its own alone: both have a row. Device, generation and sequence show them.

use std::collections::HashMap;

use super::offsets::OffsetSet;
use crate::lake_reader::{Row, long_at, text_at};

/// Sequences of one generation of a device, by the way that they came.
#[derive(Debug, Default)]
struct Sequences {
    by_hub: OffsetSet,
    by_kafka: OffsetSet,
}

/// What came by which way.
#[derive(Debug, Default)]
pub(super) struct Ways {
    devices: HashMap<String, HashMap<i64, Sequences>>,
}

impl Ways {
    /// Takes a row; one without identity is nobody's repeat.
    pub(super) fn note(&mut self, row: Row<'_>, at: usize, is_hub: bool) {
        let number = |column| long_at(row.longs(column), at);
        let (Some(device), Some(generation), Some(sequence)) =
            (text_at(row.texts("device_id"), at), number("generation"), number("sequence"))
        else {
            return;
        };
        self.add(device, generation, sequence, is_hub);
    }

    fn add(&mut self, device: &str, generation: i64, sequence: i64, is_hub: bool) {
        if !self.devices.contains_key(device) {
            self.devices.insert(device.to_owned(), HashMap::new());
        }
        let Some(generations) = self.devices.get_mut(device) else { return };
        let Sequences { by_hub, by_kafka } = generations.entry(generation).or_default();
        // One that comes twice by the same way is a dead letter that was sent again.
        if is_hub {
            by_hub.insert(sequence)
        } else {
            by_kafka.insert(sequence)
        };
    }

    /// How many came by both.
    pub(super) fn count(&self) -> u64 {
        let all = self.devices.values().flat_map(HashMap::values);
        all.map(|sequences| sequences.by_hub.count_common(&sequences.by_kafka)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_by_device_generation_and_sequence() {
        let mut ways = Ways::default();
        for sequence in 0..100_000 {
            ways.add("a", 1, sequence, sequence >= 60_000);
        }
        assert_eq!(ways.count(), 0);
        ways.add("a", 2, 10, true);
        ways.add("b", 1, 10, true);
        ways.add("a", 1, 59_999, false);
        ways.add("a", 1, 60_000, true);
        assert_eq!(ways.count(), 0, "others, and the same by the same way");
        ways.add("a", 1, 60_000, false);
        ways.add("a", 1, 59_999, true);
        ways.add("a", 1, 0, true);
        assert_eq!(ways.count(), 3);
    }
}
