//! The board as the stop path writes on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::TryLockError;

use edge_core::baseline::{Baseline, LearnProgress};
use edge_core::interlock::LatchSnapshot;
use shared_proto::model::MachineId;

use super::{Board, Part, Shown, ShownBaseline, show_ready};

/// Never waits for whoever reads the board. Those threads yield to the stop path (`protection.background-nice`): one that the
/// processor has put off while it copies a page would hold the stop path up for as long as it is put off itself. What finds the
/// board taken waits here, the newest of each kind, until [`Self::hand_over`].
pub struct QuietBoard {
    board: Board,
    waiting: Waiting,
}

#[derive(Default)]
struct Waiting {
    parts: BTreeMap<Part, Result<(), String>>,
    forgotten: BTreeSet<MachineId>,
    latches: BTreeMap<MachineId, LatchSnapshot>,
    learning: Option<BTreeMap<MachineId, LearnProgress>>,
    baselines: BTreeMap<MachineId, ShownBaseline>,
}

impl QuietBoard {
    /// A way of its own to this board.
    #[must_use]
    pub fn new(board: &Board) -> Self {
        Self { board: board.clone(), waiting: Waiting::default() }
    }

    /// As [`Board::set`].
    pub fn set(&mut self, part: Part, state: Result<(), String>) {
        show_ready(part, state.is_ok());
        self.waiting.parts.insert(part, state);
        self.hand_over();
    }

    /// Shows the latch of a machine.
    pub fn show_latch(&mut self, latch: LatchSnapshot) {
        self.waiting.latches.insert(latch.machine_id.clone(), latch);
        self.hand_over();
    }

    /// Takes a machine off that is no longer protected.
    pub fn forget_latch(&mut self, machine_id: &MachineId) {
        self.waiting.latches.remove(machine_id);
        self.waiting.baselines.remove(machine_id);
        self.waiting.forgotten.insert(machine_id.clone());
        self.hand_over();
    }

    /// Shows how far machines are learnt.
    pub fn show_learning(&mut self, learning: BTreeMap<MachineId, LearnProgress>) {
        self.waiting.learning = Some(learning);
        self.hand_over();
    }

    /// As [`Board::show_baseline`].
    pub fn show_baseline(&mut self, baseline: &Baseline) {
        let shown = ShownBaseline::of(baseline);
        self.waiting.baselines.insert(baseline.machine_id.clone(), shown);
        self.hand_over();
    }

    /// Brings to the board what waits, if nobody has taken it. To be called again and again.
    pub fn hand_over(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let mut shown = match self.board.0.try_lock() {
            Ok(shown) => shown,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        std::mem::take(&mut self.waiting).show(&mut shown);
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.parts.is_empty()
            && self.forgotten.is_empty()
            && self.latches.is_empty()
            && self.learning.is_none()
            && self.baselines.is_empty()
    }

    fn show(self, shown: &mut Shown) {
        shown.parts.extend(self.parts);
        for machine_id in self.forgotten {
            shown.baselines.remove(&machine_id);
            shown.latches.remove(&machine_id);
        }
        shown.latches.extend(self.latches);
        if let Some(learning) = self.learning {
            shown.learning = learning;
        }
        shown.baselines.extend(self.baselines);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn latch(machine_id: &str) -> LatchSnapshot {
        let latch = json!({ "machine_id": machine_id, "trip_count": 0 });
        serde_json::from_value(latch).expect("as in its file")
    }

    fn machines(board: &Board) -> Vec<String> {
        let machines = board.status().machines;
        machines.iter().map(|machine| machine.latch.machine_id.to_string()).collect()
    }

    #[test]
    fn who_reads_the_board_keeps_nobody_of_the_stop_path_waiting() {
        let board = Board::default();
        let mut quiet = QuietBoard::new(&board);
        quiet.show_latch(latch("press-1"));
        assert_eq!(machines(&board), ["press-1"]);
        board.with(|_| {
            // Whoever waited here would wait for ever.
            quiet.set(Part::Protection, Err("broker".to_owned()));
            quiet.set(Part::Protection, Ok(()));
            quiet.show_latch(latch("press-2"));
            quiet.forget_latch(&MachineId::new("press-1").expect("valid"));
            quiet.show_learning(BTreeMap::new());
            quiet.hand_over();
        });
        assert_eq!(machines(&board), ["press-1"], "it was taken");
        quiet.hand_over();
        assert_eq!(machines(&board), ["press-2"]);
        assert_eq!(board.lines(), ["protection: ok\n"]);
    }

    #[test]
    fn what_is_forgotten_and_comes_again_is_there() {
        let board = Board::default();
        let mut quiet = QuietBoard::new(&board);
        board.with(|_| {
            quiet.show_latch(latch("press-1"));
            quiet.forget_latch(&MachineId::new("press-1").expect("valid"));
            quiet.show_latch(latch("press-1"));
        });
        quiet.hand_over();
        assert_eq!(machines(&board), ["press-1"]);
    }
}
