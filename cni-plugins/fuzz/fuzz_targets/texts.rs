//! See `cni_plugins::fuzz::texts`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cni_plugins::fuzz::texts(bytes));
