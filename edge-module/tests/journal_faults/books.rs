//! What the journal owes, from what the writer told, and whether it has it.

use std::collections::BTreeMap;
use std::path::Path;

use edge_module::store::{Journal as _, Lane, SegmentedJournal};
use shared_proto::model::{EventTime, Sequence};

use crate::writer::{SMALL_SEGMENT_BYTES, Told, lane_of, number_of, payload_of, settings};

const BATCH_RECORDS: usize = 1_000;

/// Records that the journal has acknowledged together.
#[derive(Clone, Copy, Debug)]
struct Group {
    first_sequence: u64,
    first: u64,
    end: u64,
}

/// Everything told so far about one journal, over the lives of several writers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Books {
    groups: Vec<Group>,
    /// Numbers given to records, acknowledged or not.
    issued: u64,
    next_sequence: u64,
    generation: Option<u64>,
    trimmed: [u64; 4],
    acknowledged: u64,
    /// What was wrong with what was told.
    fault: Option<String>,
}

/// What a lane holds: sequence and number.
type Held = Vec<(u64, u64)>;

impl Books {
    /// The number that the next writer begins with.
    pub(crate) const fn next_number(&self) -> u64 {
        self.issued
    }

    /// Records acknowledged so far.
    pub(crate) const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub(crate) fn hear(&mut self, told: Told) {
        match told {
            Told::Opened { generation, next_sequence, losses } => {
                if *self.generation.get_or_insert(generation) != generation {
                    self.fault(format!("generation {generation}, it was {:?}", self.generation));
                }
                if next_sequence < self.next_sequence {
                    self.fault(format!("sequence {next_sequence} is given again"));
                }
                if losses > 0 {
                    self.fault(format!("{losses} losses reported to the writer"));
                }
            }
            Told::Offered { end, .. } => self.issued = self.issued.max(end),
            Told::Acknowledged { first, end, next_sequence } => {
                let first_sequence = next_sequence - (end - first);
                if first_sequence < self.next_sequence {
                    self.fault(format!("sequence {first_sequence} is given again"));
                }
                self.groups.push(Group { first_sequence, first, end });
                self.next_sequence = next_sequence;
                self.acknowledged += end - first;
            }
            Told::Refused => {}
            Told::Trimming { lane, through } => {
                let trimmed = &mut self.trimmed[index_of(lane)];
                *trimmed = through.max(*trimmed);
            }
        }
    }

    fn fault(&mut self, fault: String) {
        self.fault.get_or_insert(fault);
    }

    /// Opens the journal in `folder` and looks at all of it.
    pub(crate) fn check(
        &mut self,
        folder: &Path,
        now: EventTime,
    ) -> Result<SegmentedJournal, String> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let journal = SegmentedJournal::open(folder, settings(SMALL_SEGMENT_BYTES), now)
            .map_err(|error| format!("does not open: {}", edge_module::journal::chain(&error)))?;
        let losses = journal.losses();
        if !losses.is_empty() {
            return Err(format!("losses reported: {losses:?}"));
        }
        let generation = journal.generation().0;
        if self.generation.is_some_and(|before| before != generation) {
            return Err(format!("generation {generation}, it was {:?}", self.generation));
        }
        let next_sequence = journal.next_sequence().0;
        if next_sequence < self.next_sequence {
            return Err(format!(
                "next sequence {next_sequence}, but {} were acknowledged",
                self.next_sequence - 1
            ));
        }
        let mut held = BTreeMap::new();
        let mut found = BTreeMap::new();
        let known = self.groups.last().map_or(0, |group| group.end);
        for lane in Lane::ALL {
            let of_lane = self.read_lane(&journal, lane)?;
            self.check_lane(lane, &of_lane)?;
            for (sequence, number) in of_lane {
                if number >= known {
                    found.insert(number, sequence);
                }
                if held.insert(sequence, lane).is_some() {
                    return Err(format!("sequence {sequence} is in two lanes"));
                }
            }
        }
        let trimmed = self.trimmed.iter().max().copied().unwrap_or_default();
        if let Some(hole) =
            (trimmed + 1..next_sequence).find(|sequence| !held.contains_key(sequence))
        {
            return Err(format!("nothing has sequence {hole}, the next is {next_sequence}"));
        }
        self.settle(generation, next_sequence, found);
        Ok(journal)
    }

    fn read_lane(&self, journal: &SegmentedJournal, lane: Lane) -> Result<Held, String> {
        let through = Sequence(journal.next_sequence().0 - 1);
        let reader = journal.reader();
        let name = lane.as_str();
        let mut held = Held::new();
        let mut after = Sequence(0);
        loop {
            let batch = reader.read(lane, after, through, BATCH_RECORDS);
            if let Some(loss) = batch.losses.first() {
                return Err(format!("the reader of {name} reports {loss:?}"));
            }
            if let Some(error) = &batch.obstacle {
                return Err(format!("{name} cannot be read: {error}"));
            }
            if batch.records.is_empty() {
                return Ok(held);
            }
            for record in batch.records {
                let sequence = record.sequence.0;
                if sequence <= after.0 {
                    return Err(format!("{name}: sequence {sequence} after {}", after.0));
                }
                after = record.sequence;
                let number = number_of(&record.payload)
                    .filter(|number| *number < self.issued)
                    .ok_or_else(|| format!("{name}: sequence {sequence} was never written"))?;
                if record.payload != payload_of(number) || lane_of(number) != lane {
                    return Err(format!("{name}: sequence {sequence} is not record {number}"));
                }
                held.push((sequence, number));
            }
        }
    }

    /// Order, and that what is missing was trimmed.
    fn check_lane(&self, lane: Lane, held: &Held) -> Result<(), String> {
        let name = lane.as_str();
        if let Some(pair) = held.windows(2).find(|pair| pair[0].1 >= pair[1].1) {
            return Err(format!("{name}: record {} after {}", pair[1].1, pair[0].1));
        }
        let first_held = held.first().map_or(u64::MAX, |(_, number)| *number);
        let trimmed = self.trimmed[index_of(lane)];
        let mut numbers = held.iter().map(|(_, number)| *number).peekable();
        for group in &self.groups {
            for number in (group.first..group.end).filter(|number| lane_of(*number) == lane) {
                while numbers.next_if(|held| *held < number).is_some() {}
                if numbers.next_if_eq(&number).is_some() {
                    continue;
                }
                if number > first_held || group.first_sequence > trimmed {
                    return Err(format!(
                        "{name}: record {number} of {group:?} is missing; trimmed through {trimmed}, \
                         first there {:?}, last there {:?}",
                        held.first(),
                        held.last()
                    ));
                }
            }
        }
        Ok(())
    }

    /// From now on the records found count as acknowledged too: whoever reads the journal may have sent them.
    fn settle(&mut self, generation: u64, next_sequence: u64, found: BTreeMap<u64, u64>) {
        self.generation = Some(generation);
        self.next_sequence = next_sequence;
        self.groups.extend(found.into_iter().map(|(number, first_sequence)| Group {
            first_sequence,
            first: number,
            end: number + 1,
        }));
        let trimmed = self.trimmed.iter().min().copied().unwrap_or_default();
        self.groups.retain(|group| group.first_sequence + (group.end - group.first) > trimmed);
    }
}

fn index_of(lane: Lane) -> usize {
    Lane::ALL.iter().position(|of| *of == lane).expect("all lanes are in it")
}
