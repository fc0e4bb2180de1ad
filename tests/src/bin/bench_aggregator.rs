//! `bench_aggregator`: what counting and storing costs. `make bench-aggregator` builds and runs it.
//!
//! `CLOUD_AGGREGATOR_BIN` names the program; what can be chosen is in [`Options`].

use e2e_tests::bench::aggregator::{Options, run};

fn main() -> anyhow::Result<()> {
    run(&Options::from_environment()?)
}
