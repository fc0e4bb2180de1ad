//! Whether the journal loses something, asked on four kinds of bad luck:
//!
//! | module | what happens | how |
//! |---|---|---|
//! | `kill` | SIGKILL at any moment under load | a child process writes, this one kills it and looks |
//! | `power_cut` | the power fails at any moment | a child records its changes, `disk_model` rebuilds what a disk may hold |
//! | `obstacles` | full disk, EIO, read-only, clock that jumps | a child writes on `disk/faulty_disk.c` |
//!
//! Nothing that was acknowledged may be missing, nothing may be there twice, changed, out of order or invented, no sequence
//! may be left out or given twice, and no loss may be reported where there is none: see `books`.
//!
//! `make long` runs a thousand rounds of each, with power cuts in both models. By hand:
//!
//! ```text
//! JOURNAL_ROUNDS=1000 cargo test -p edge-module --test journal_faults -- --nocapture --test-threads=1
//! JOURNAL_ROUNDS=1000 POWER_CUT_MODEL=ext4 cargo test -p edge-module --test journal_faults -- --nocapture power_cut
//! ```
//!
//! `JOURNAL_ROUNDS` sets the number of rounds, `JOURNAL_SEED` where the random numbers begin; each failure names its seed.

#[allow(dead_code, reason = "each test binary uses its part of it")]
#[path = "../disk/mod.rs"]
mod disk;

mod books;
mod disk_model;
mod kill;
mod obstacles;
mod power_cut;
mod random;
mod scratch;
mod writer;
