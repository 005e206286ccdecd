//! Gives the store's reader of segments any bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| casbah::store::fuzzing::segment(data));
