//! Lets the binary find the TensorFlow Lite library without `LD_LIBRARY_PATH`: beside itself (image, installed
//! on a gateway) or where the set-up step put it (build tree).

fn main() {
    println!("cargo::rerun-if-env-changed=TFLITEC_PREBUILT_PATH");
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN:$ORIGIN/../lib");
    if let Ok(library) = std::env::var("TFLITEC_PREBUILT_PATH")
        && let Some(folder) = std::path::Path::new(&library).parent()
    {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
}
