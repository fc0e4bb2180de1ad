//! Compiles the `.proto` files in pure Rust: no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["reading", "waveform", "machine_event", "dead_letter", "outcome"]
        .map(|name| format!("proto/predictive_maintenance/v1/{name}.proto"));
    let descriptors = protox::compile(&files, ["proto"])?;
    prost_build::Config::new().btree_map(["."]).compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
