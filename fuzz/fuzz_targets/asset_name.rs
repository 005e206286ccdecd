//! Gives the keys of assets any names.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| casbah::serve::fuzzing::asset_name(data));
