//! From the samples of a window to its features nothing is allocated. From there to the score TensorFlow Lite itself takes a few small
//! pieces in each run, and the crate that binds it two where it hands out the output tensor (its name and shape): neither can be
//! told not to, so their number is held. Rust and everything else are counted apart.
//!
//! Runs without the test harness, whose other threads would be counted as well.

#![cfg(feature = "tflite")]
#![expect(unsafe_code, reason = "an allocator that counts has to be one")]

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_void;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use edge_module::scoring::Bundle;

const WINDOWS: u16 = 200;
/// What a score takes at most.
const OF_RUST_MAX: u64 = 2;
const OF_OTHERS_MAX: u64 = 4;

/// Allocations of Rust, and of everything else in the process.
static OF_RUST: AtomicU64 = AtomicU64::new(0);
static OF_OTHERS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(pointer: *mut c_void, size: usize) -> *mut c_void;
    fn __libc_memalign(alignment: usize, size: usize) -> *mut c_void;
    fn __libc_free(pointer: *mut c_void);
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    OF_OTHERS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the C library's own.
    unsafe { __libc_malloc(size) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    OF_OTHERS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the C library's own.
    unsafe { __libc_calloc(count, size) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(pointer: *mut c_void, size: usize) -> *mut c_void {
    OF_OTHERS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the C library's own.
    unsafe { __libc_realloc(pointer, size) }
}

struct Counting;

// SAFETY: every call goes to the C library as it came; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        OF_RUST.fetch_add(1, Ordering::Relaxed);
        // SAFETY: an alignment is a power of two.
        unsafe { __libc_memalign(layout.align().max(size_of::<usize>()), layout.size()).cast() }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, _: Layout) {
        // SAFETY: the pointer came from `alloc`.
        unsafe { __libc_free(pointer.cast()) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn counts() -> (u64, u64) {
    (OF_RUST.load(Ordering::Relaxed), OF_OTHERS.load(Ordering::Relaxed))
}

fn main() {
    let bundles = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/bundles");
    for name in ["motor-v1", "motor-shape-v2", "motor-line-v1"] {
        let bundle = Bundle::load(&bundles.join(name)).expect("a committed bundle");
        let before = counts();
        let mut extractor = bundle.extractor().expect("checked when it was loaded");
        let mut scorer = bundle.scorer().expect("checked when it was loaded");
        let started = counts();
        assert!(started.0 > before.0 && started.1 > before.1, "both are counted: {started:?}");
        let samples = bundle.metadata().input.window_samples;
        let mut window: Vec<f32> = (0..samples).map(|place| (place % 97) as f32 / 97.0).collect();
        // The first window may still find something to prepare.
        scorer.logit(extractor.extract(&window).expect("finite")).expect("an answer");
        let (mut of_features, mut of_scores) = ((0, 0), (0, 0));
        for round in 0..WINDOWS {
            window[usize::from(round)] = f32::from(round);
            let before = counts();
            let features = extractor.extract(&window).expect("finite samples");
            let between = counts();
            let logit = scorer.logit(features).expect("an answer");
            let after = counts();
            assert!(logit.is_finite());
            of_features =
                (of_features.0 + between.0 - before.0, of_features.1 + between.1 - before.1);
            of_scores = (of_scores.0 + after.0 - between.0, of_scores.1 + after.1 - between.1);
        }
        assert_eq!(of_features, (0, 0), "{name}: features");
        let each = (of_scores.0 / u64::from(WINDOWS), of_scores.1 / u64::from(WINDOWS));
        assert!(each.0 <= OF_RUST_MAX && each.1 <= OF_OTHERS_MAX, "{name}: {each:?} for a score");
    }
}
