//! Positions of records in a topic whose messages hold several of them: that of a hub.
//!
//! A row is named by topic, partition and offset, and elsewhere each record has an offset of its own. Here the records of one message
//! share one, so that the row has a position in its place: the offset times [`POSITIONS`], plus the record's place in the message. That is
//! a name of one record, grows as the records are read, and tells both.

/// Positions of one message: it holds no more records.
pub const POSITIONS: usize = 4_096;

/// Position of a record: of the message at an offset, the one at a place (from 0). An `i64` holds those of 2^51 messages in one
/// partition, seventy years at a million a second.
#[must_use]
pub const fn position(offset: i64, place: usize) -> i64 {
    offset.saturating_mul(POSITIONS as i64).saturating_add(place as i64)
}

/// Offset of the message that holds the record at a position.
#[must_use]
pub const fn offset_of(position: i64) -> i64 {
    position.div_euclid(POSITIONS as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_names_one_record_and_tells_its_message() {
        let mut before = -1;
        for offset in [0, 1, 2, (1 << 51) - 1] {
            for place in [0, 1, POSITIONS - 1] {
                let position = position(offset, place);
                assert!(position > before, "{offset} {place}");
                assert_eq!(offset_of(position), offset, "{place}");
                before = position;
            }
        }
        assert_eq!(position(1, 0), position(0, POSITIONS - 1) + 1);
    }
}
