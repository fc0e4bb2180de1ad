//! Time from a window's samples to its score: `cargo bench -p edge-module --bench scoring`.
#![expect(clippy::print_stdout, reason = "a benchmark is read by a person")]

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use edge_module::scoring::Bundle;

const ROUNDS: usize = 20_000;
const BUNDLES: [&str; 3] = ["motor-v1", "motor-shape-v2", "motor-line-v1"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
    println!("processor: {}", model.unwrap_or("unknown").trim_start_matches([' ', '\t', ':']));
    println!("profile: {}", if cfg!(debug_assertions) { "dev" } else { "release" });
    BUNDLES.into_iter().try_for_each(measure)
}

fn measure(name: &str) -> Result<(), Box<dyn std::error::Error>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/bundles").join(name);
    let started = Instant::now();
    let bundle = Bundle::load(&dir)?;
    println!("{name}: load and self-test: {:?}", started.elapsed());
    let mut extractor = bundle.extractor()?;
    let mut scorer = bundle.scorer()?;
    let samples: Vec<f32> = (0..bundle.metadata().input.window_samples)
        .map(|index| 0.9 + 0.01 * (index as f32 * 0.37).sin() + 0.002 * (index as f32 * 2.3).cos())
        .collect();
    let (mut extracting, mut all) = (Vec::with_capacity(ROUNDS), Vec::with_capacity(ROUNDS));
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let features = extractor.extract(black_box(&samples))?;
        extracting.push(start.elapsed());
        black_box(scorer.score(features)?);
        all.push(start.elapsed());
    }
    for (what, times) in [("features", &mut extracting), ("features and score", &mut all)] {
        times.sort();
        println!(
            "{name}: {what}: median {:?}, p99 {:?}, p99.9 {:?}, most {:?} of {ROUNDS} windows of {} samples",
            times[ROUNDS / 2],
            times[ROUNDS * 99 / 100],
            times[ROUNDS * 999 / 1000],
            times[ROUNDS - 1],
            samples.len()
        );
    }
    Ok(())
}
