//! Gives the decoder of uploads any frames.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| casbah::serve::fuzzing::zstd(data));
