//! Gives the store's reader of compressed files any bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| casbah::store::fuzzing::frames(data));
