//! The command line: read settings, open models, serve.

fn main() {}
