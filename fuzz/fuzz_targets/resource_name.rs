//! Gives the reader of resource names any bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    casbah::serve::fuzzing::resource_name(data);
});
