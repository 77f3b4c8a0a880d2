//! See `cni_plugins::fuzz::configuration`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cni_plugins::fuzz::configuration(bytes));
