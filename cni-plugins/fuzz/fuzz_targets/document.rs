//! See `cni::fuzz::document`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cni::fuzz::document(bytes));
