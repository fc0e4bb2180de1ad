//! `bench_edge`: how fast a stop is, and a backlog leaves. `make bench-edge` builds and runs it.
//!
//! `EDGE_MODULE_BIN` names the module; what can be chosen is in [`Options`].

use e2e_tests::bench::{Options, run};

fn main() -> anyhow::Result<()> {
    run(&Options::from_environment()?)
}
