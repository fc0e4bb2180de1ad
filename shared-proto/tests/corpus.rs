//! The fuzzers' inputs keep their properties: the awkward lines that the corpus began with, and whatever a fuzzer has found.

#[path = "../fuzz/properties.rs"]
mod properties;

use std::path::Path;

use shared_proto::Encoding;

fn check(folder: &str, encoding: Encoding) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(folder);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is there") {
        let path = entry.expect("readable").path();
        eprintln!("{}", path.display());
        let bytes = std::fs::read(&path).expect("readable");
        // What it allocates is counted where the fuzzers run.
        properties::check(&bytes, encoding, &|work| {
            work();
            0
        });
        inputs += 1;
    }
    assert!(inputs > 20, "{inputs} inputs in {}", folder.display());
}

#[test]
fn json_inputs_keep_their_properties() {
    check("json", Encoding::Json);
}

#[test]
fn protobuf_inputs_keep_their_properties() {
    check("protobuf", Encoding::Protobuf);
}
