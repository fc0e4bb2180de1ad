//! Any bytes as records in protobuf: see [`properties`].
#![no_main]

#[path = "../properties.rs"]
mod properties;

use allocation_counter::measure;
use libfuzzer_sys::fuzz_target;
use shared_proto::Encoding;

fuzz_target!(|bytes: &[u8]| {
    properties::check(bytes, Encoding::Protobuf, &|work| measure(work).bytes_max);
});
