//! The command line's entry.

use std::process::ExitCode;

fn main() -> ExitCode {
    explaind::cli::run(std::env::args_os().collect())
}
