//! Records as they are written, by both engines, and found again in damaged files.
//!
//! ```text
//! chunk: magic "PMCHUNK1" | length of the entries u32 | CRC-32C of generation, lane and previous u32 | generation u64 |
//!        previous u64 | lane u8 | 7 zero bytes | entries
//! entry: length of the payload u32 | CRC-32C of sequence and payload u32 | sequence u64 | payload
//! ```
//!
//! Little endian. `previous` is the sequence of the record of the same lane before the chunk, 0 for none. Entries are in
//! order. Each entry is checked by itself, so that a chunk with a damaged one still gives the others before it.

use shared_proto::model::{Generation, Sequence};

use super::{Lane, RECORD_BYTES_MAX, Stored};

/// Largest chunk of more than one record.
pub(super) const CHUNK_BYTES_MAX: usize = 64 * 1024;
const MAGIC: &[u8; 8] = b"PMCHUNK1";
const HEADER_BYTES: usize = 40;
const ENTRY_HEADER_BYTES: usize = 16;

/// Entries that are written as one value.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) previous: Sequence,
    pub(super) first: Sequence,
    pub(super) last: Sequence,
    pub(super) records: u64,
    pub(super) bytes: Vec<u8>,
}

impl Chunk {
    pub(super) fn new(generation: Generation, lane: Lane, previous: Sequence) -> Self {
        let mut bytes = Vec::with_capacity(8 * 1024);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&header_checksum(generation, lane, previous).to_le_bytes());
        bytes.extend_from_slice(&generation.0.to_le_bytes());
        bytes.extend_from_slice(&previous.0.to_le_bytes());
        bytes.push(lane_code(lane));
        bytes.extend_from_slice(&[0; 7]);
        Self { previous, first: Sequence(0), last: previous, records: 0, bytes }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Whether another record would make it too large. An empty chunk takes any record.
    pub(super) fn is_full_for(&self, payload: &[u8]) -> bool {
        !self.is_empty() && self.bytes.len() + ENTRY_HEADER_BYTES + payload.len() > CHUNK_BYTES_MAX
    }

    pub(super) fn push(&mut self, sequence: Sequence, payload: &[u8]) {
        if self.is_empty() {
            self.first = sequence;
        }
        self.last = sequence;
        self.records += 1;
        push_entry(&mut self.bytes, sequence, payload);
        let entries = u32::try_from(self.bytes.len() - HEADER_BYTES).expect("chunks are small");
        self.bytes[8..12].copy_from_slice(&entries.to_le_bytes());
    }
}

/// What a chunk's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ChunkHeader {
    generation: Generation,
    lane: Lane,
    previous: Sequence,
}

/// Reads the header, unless it is damaged.
fn read_header(bytes: &[u8]) -> Option<ChunkHeader> {
    let header = bytes.get(..HEADER_BYTES).filter(|header| header.starts_with(MAGIC))?;
    let expected = u32::from_le_bytes(header[12..16].try_into().ok()?);
    let generation = Generation(u64::from_le_bytes(header[16..24].try_into().ok()?));
    let previous = Sequence(u64::from_le_bytes(header[24..32].try_into().ok()?));
    let lane = Lane::ALL.into_iter().find(|lane| lane_code(*lane) == header[32])?;
    let is_whole = header_checksum(generation, lane, previous) == expected;
    is_whole.then_some(ChunkHeader { generation, lane, previous })
}

/// What is whole in a chunk.
#[derive(Debug, Default)]
pub(super) struct Decoded<'a> {
    /// Record of the lane before this chunk, if the header is whole.
    pub(super) previous: Option<Sequence>,
    /// In order; ends before the first that is damaged.
    pub(super) entries: Vec<(Sequence, &'a [u8])>,
    /// Whether everything was whole.
    pub(super) is_whole: bool,
}

/// Reads a chunk of a known lane. What has a whole header of another lane or generation is not ours.
pub(super) fn decode(bytes: &[u8], generation: Generation, lane: Lane) -> Decoded<'_> {
    let header = read_header(bytes);
    if header.is_some_and(|header| header.generation != generation || header.lane != lane) {
        return Decoded::default();
    }
    let mut rest = bytes.get(HEADER_BYTES..).unwrap_or_default();
    let length = bytes.get(8..12).and_then(|length| length.try_into().ok()).map(u32::from_le_bytes);
    let is_length_right = length.is_some_and(|length| length as usize == rest.len());
    let mut entries = Vec::new();
    while let Some((sequence, payload, after)) = split_entry(rest) {
        entries.push((sequence, payload));
        rest = after;
    }
    let is_whole = header.is_some() && is_length_right && rest.is_empty();
    Decoded { previous: header.map(|header| header.previous), entries, is_whole }
}

/// A chunk found in damaged bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Salvaged {
    pub(super) previous: Option<Sequence>,
    pub(super) records: Vec<Stored>,
}

impl Salvaged {
    /// Keeps what is whole of a decoded chunk.
    pub(super) fn of(decoded: &Decoded<'_>) -> Self {
        let records = decoded
            .entries
            .iter()
            .map(|(sequence, payload)| Stored { sequence: *sequence, payload: payload.to_vec() });
        Self { previous: decoded.previous, records: records.collect() }
    }

    /// The chunk again, with what is left of it.
    pub(super) fn to_chunk(&self, generation: Generation, lane: Lane) -> Chunk {
        // Without a header nobody knows the record before: none is named, so that nothing is called lost for its sake.
        let mut chunk = Chunk::new(generation, lane, self.previous.unwrap_or_default());
        for record in &self.records {
            chunk.push(record.sequence, &record.payload);
        }
        chunk
    }
}

/// A chunk found in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Located {
    /// Where it begins.
    pub(super) offset: u64,
    /// Its length, up to the last entry that is whole.
    pub(super) length: usize,
    pub(super) first: Sequence,
    pub(super) last: Sequence,
    pub(super) records: u64,
    pub(super) previous: Option<Sequence>,
    pub(super) is_whole: bool,
}

/// Finds chunks of the lane in any bytes, as far as they begin before `end`. Gives where to go on.
pub(super) fn locate(
    bytes: &[u8],
    end: usize,
    generation: Generation,
    lane: Lane,
    mut take: impl FnMut(Located),
) -> usize {
    let mut at = 0;
    while let Some(distance) = find(&bytes[at..], MAGIC) {
        let searched_from = at;
        at += distance;
        if at >= end {
            return searched_from.max(end);
        }
        let stated = bytes.get(at + 8..at + 12).and_then(|length| length.try_into().ok());
        let stated = stated.map_or(0, |length| u32::from_le_bytes(length) as usize);
        let exactly = bytes.get(at..at.saturating_add(HEADER_BYTES).saturating_add(stated));
        let whole = exactly.map(|bytes| decode(bytes, generation, lane));
        let decoded = match whole {
            Some(decoded) if decoded.is_whole => decoded,
            Some(_) | None => decode(&bytes[at..], generation, lane),
        };
        let entries = decoded.entries.iter();
        let length = entries.map(|(_, payload)| ENTRY_HEADER_BYTES + payload.len()).sum::<usize>();
        let length = HEADER_BYTES + length;
        if let (Some(first), Some(last)) = (decoded.entries.first(), decoded.entries.last()) {
            take(Located {
                offset: at as u64,
                length,
                first: first.0,
                last: last.0,
                records: decoded.entries.len() as u64,
                previous: decoded.previous,
                is_whole: decoded.is_whole,
            });
        }
        // What lies inside a whole one is payload. A damaged length must not hide the chunk behind it.
        at += if decoded.is_whole { length } else { MAGIC.len() };
    }
    at.max(end)
}

pub(super) fn find(bytes: &[u8], pattern: &[u8; 8]) -> Option<usize> {
    let mut at = 0;
    while let Some(distance) = bytes[at..].iter().position(|byte| *byte == pattern[0]) {
        at += distance;
        if bytes[at..].starts_with(pattern) {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// Appends an entry.
pub(super) fn push_entry(bytes: &mut Vec<u8>, sequence: Sequence, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("records are limited to 96 KiB");
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum(sequence, payload).to_le_bytes());
    bytes.extend_from_slice(&sequence.0.to_le_bytes());
    bytes.extend_from_slice(payload);
}

/// Takes a whole entry off the front.
pub(super) fn split_entry(bytes: &[u8]) -> Option<(Sequence, &[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(ENTRY_HEADER_BYTES)?;
    let length = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
    let expected = u32::from_le_bytes(header[4..8].try_into().ok()?);
    let sequence = Sequence(u64::from_le_bytes(header[8..].try_into().ok()?));
    if length > RECORD_BYTES_MAX {
        return None;
    }
    let (payload, rest) = rest.split_at_checked(length)?;
    (checksum(sequence, payload) == expected).then_some((sequence, payload, rest))
}

fn checksum(sequence: Sequence, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&sequence.0.to_le_bytes()), payload)
}

fn header_checksum(generation: Generation, lane: Lane, previous: Sequence) -> u32 {
    let mut bytes = [0; 17];
    bytes[..8].copy_from_slice(&generation.0.to_le_bytes());
    bytes[8..16].copy_from_slice(&previous.0.to_le_bytes());
    bytes[16] = lane_code(lane);
    crc32c::crc32c(&bytes)
}

/// The lane's number on disk: never changes, whatever the order of leaving.
const fn lane_code(lane: Lane) -> u8 {
    match lane {
        Lane::Events => 1,
        Lane::Readings => 2,
        Lane::DeadLetters => 3,
        Lane::Waveforms => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENERATION: Generation = Generation(7);

    fn chunk(previous: u64, range: std::ops::RangeInclusive<u64>) -> Chunk {
        let mut chunk = Chunk::new(GENERATION, Lane::Readings, Sequence(previous));
        for number in range {
            chunk.push(Sequence(number), format!("reading {number}").as_bytes());
        }
        chunk
    }

    #[test]
    fn a_chunk_comes_back_with_its_predecessor() {
        let chunk = chunk(3, 5..=9);
        let decoded = decode(&chunk.bytes, GENERATION, Lane::Readings);
        assert!(decoded.is_whole);
        assert_eq!(decoded.previous, Some(Sequence(3)));
        let numbers: Vec<u64> = decoded.entries.iter().map(|(sequence, _)| sequence.0).collect();
        assert_eq!(numbers, [5, 6, 7, 8, 9]);
        assert_eq!(decode(&chunk.bytes, Generation(8), Lane::Readings).entries, []);
        assert_eq!(decode(&chunk.bytes, GENERATION, Lane::Events).entries, []);
    }

    #[test]
    fn a_damaged_entry_costs_itself_and_what_is_behind_it_in_its_chunk() {
        let mut damaged = chunk(0, 1..=5).bytes;
        let at = find_text(&damaged, b"reading 3");
        damaged[at] ^= 1;
        let decoded = decode(&damaged, GENERATION, Lane::Readings);
        assert!(!decoded.is_whole);
        assert_eq!(decoded.entries.len(), 2);
        assert_eq!(decoded.previous, Some(Sequence(0)));
    }

    #[test]
    fn a_cut_chunk_is_not_whole() {
        let chunk = chunk(0, 1..=5).bytes;
        for length in 0..chunk.len() {
            let decoded = decode(&chunk[..length], GENERATION, Lane::Readings);
            assert!(!decoded.is_whole, "{length}");
        }
    }

    #[test]
    fn chunks_are_found_among_other_bytes() {
        let mut bytes = b"PMCHUNPMCHUNK1 noise".to_vec();
        bytes.extend(chunk(0, 1..=3).bytes);
        bytes.extend_from_slice(&[0xff; 100]);
        let mut damaged = chunk(3, 4..=6).bytes;
        let at = find_text(&damaged, b"reading 5");
        damaged[at] ^= 1;
        bytes.extend(damaged);
        bytes.extend(chunk(6, 7..=7).bytes);
        bytes.extend(&chunk(7, 8..=9).bytes[..70]);
        let mut found = Vec::new();
        let end = bytes.len();
        locate(&bytes, end, GENERATION, Lane::Readings, |located| found.push(located));
        let ranges: Vec<_> =
            found.iter().map(|chunk| (chunk.first.0, chunk.last.0, chunk.is_whole)).collect();
        assert_eq!(ranges, [(1, 3, true), (4, 4, false), (7, 7, true), (8, 8, false)]);
        assert_eq!(found[3].previous, Some(Sequence(7)));
        for located in found {
            let at = usize::try_from(located.offset).expect("small");
            let decoded = decode(&bytes[at..at + located.length], GENERATION, Lane::Readings);
            assert_eq!(decoded.entries.len() as u64, located.records);
        }
    }

    #[test]
    fn a_chunk_inside_a_payload_is_payload() {
        let mut outer = Chunk::new(GENERATION, Lane::Readings, Sequence(8));
        outer.push(Sequence(9), &chunk(0, 1..=3).bytes);
        let mut found = Vec::new();
        let end = outer.bytes.len();
        locate(&outer.bytes, end, GENERATION, Lane::Readings, |located| found.push(located.first));
        assert_eq!(found, [Sequence(9)]);
    }

    fn find_text(bytes: &[u8], text: &[u8]) -> usize {
        bytes.windows(text.len()).position(|window| window == text).expect("there")
    }
}
