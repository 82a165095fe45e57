//! The command line: one file a subcommand.

mod calibrate;
mod export;
mod inspect;
mod openapi;
mod serve;

use std::{
    ffi::OsString,
    io::{self, ErrorKind},
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{self, ConfigError, Settings};

/// Answers over HTTP why a text classifier said what it said.
#[derive(Debug, Parser)]
#[command(name = "explaind", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Open models and answer requests
    #[command(args_override_self = true)]
    Serve(Box<Settings>),
    /// Print the parts of a model and the methods that they allow
    Inspect(inspect::Inspect),
    /// Write a derived graph as an ONNX file
    Export(export::Export),
    /// Fit a model's temperature on labelled texts, so that its probabilities are as sure as they are right
    Calibrate(calibrate::Calibrate),
    /// Print the OpenAPI document of this build
    Openapi,
}

/// Does what `argv` says. Exit codes: 0 done, 1 failed, 2 told wrongly.
pub fn run(argv: Vec<OsString>) -> ExitCode {
    let (matches, listing) = match config::resolve(Cli::command(), argv, std::env::vars_os()) {
        Ok(resolved) => resolved,
        Err(ConfigError::Usage(usage)) => usage.exit(),
        Err(error) => return told_wrongly(&error),
    };
    let done = match Cli::from_arg_matches(&matches).map(|it| it.command) {
        Ok(Command::Serve(settings)) => {
            let conflicts = settings.conflicts();
            if !conflicts.is_empty() {
                conflicts.iter().for_each(|it| eprintln!("error: {it}"));
                return ExitCode::from(2);
            }
            serve::run(*settings, &listing)
        }
        Ok(Command::Inspect(arguments)) => inspect::run(&arguments),
        Ok(Command::Export(arguments)) => export::run(&arguments),
        Ok(Command::Calibrate(arguments)) => calibrate::run(&arguments),
        Ok(Command::Openapi) => openapi::run(),
        Err(error) => error.exit(),
    };
    done.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        usage.exit();
    }
    // Whoever read the output has read enough.
    if error.downcast_ref::<io::Error>().is_some_and(|it| it.kind() == ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

fn told_wrongly(error: &ConfigError) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(2)
}
