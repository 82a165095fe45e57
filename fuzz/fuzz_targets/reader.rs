//! This file is where arbitrary bytes meet the ONNX reader: it may refuse them, never panic, hang or ask for
//! memory that the file cannot fill.
#![no_main]

use explaind::compile::{no_external, normalise::normalise, probe::ids_input, read, write};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut graph) = read(bytes.to_vec().into(), &no_external) else { return };
    let _ = graph.to_string();
    if normalise(&mut graph).is_ok() {
        let _ = ids_input(&graph);
        let again = read(write(&graph).into(), &no_external);
        assert!(again.is_ok(), "what is written reads back");
    }
});
