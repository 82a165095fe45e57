//! Every setting: its flag, its variable, its default, and the sentence that explains it.
//!
//! A field is a setting: `max_inputs` is `--max-inputs` on the command line, `EXPLAIND_MAX_INPUTS` in the
//! environment and `max_inputs` in the TOML file, and they win in this order ([`layers`]). The doc comment
//! is what `explaind serve --help` prints.

mod check;
mod layers;

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{ArgAction, Args, ValueEnum, value_parser};

use crate::{
    explain::Limits,
    runtime::{Device, granted_cores},
};

pub use check::Conflict;
pub use layers::{ConfigError, Entry, Source, resolve};

/// Everything that `explaind serve` can be told.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// A TOML file with further settings, one key for each flag (`max_inputs = 8`), models in a table
    /// (`[models]`, `sst2 = "models/sst2"`)
    #[arg(long, env = "EXPLAIND_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the resolved settings, check them, and exit without serving
    #[arg(long, action = ArgAction::SetTrue)]
    pub check_config: bool,
    /// The models to open.
    #[command(flatten)]
    pub models: ModelSettings,
    /// The addresses to listen at, and who may ask.
    #[command(flatten)]
    pub listen: ListenSettings,
    /// Workers and their sessions.
    #[command(flatten)]
    pub engine: EngineSettings,
    /// What one request may ask for.
    #[command(flatten)]
    pub limits: LimitSettings,
    /// The way out.
    #[command(flatten)]
    pub drain: DrainSettings,
    /// What is written to standard error.
    #[command(flatten)]
    pub log: LogSettings,
}

/// Which models are opened.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Models")]
pub struct ModelSettings {
    /// A model to serve under NAME from the folder DIR (config.json, tokenizer.json, model.onnx); repeatable, and
    /// in the variable separated by commas; the first is the default model
    #[arg(long = "model", env = "EXPLAIND_MODELS", value_name = "NAME=DIR")]
    pub models: Vec<NamedFolder>,
    /// A masked language model in the folder DIR as the companion of the model NAME, for `operation: "mlm"`; it
    /// must have the model's vocabulary; repeatable, and in the variable separated by commas
    #[arg(long = "fill-mask", env = "EXPLAIND_FILL_MASK", value_name = "NAME=DIR")]
    pub fill_mask: Vec<NamedFolder>,
    /// Serve although some models or companions do not open; they are listed as failed, and what asks for such a
    /// model is refused
    #[arg(long, env = "EXPLAIND_ALLOW_PARTIAL", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_partial: bool,
}

/// Where the service listens, and who may ask.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Listening")]
pub struct ListenSettings {
    /// Address of the service
    #[arg(long, env = "EXPLAIND_ADDR", value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub addr: SocketAddr,
    /// A second address that serves only /metrics and the probes
    #[arg(long, env = "EXPLAIND_METRICS_ADDR", value_name = "ADDR")]
    pub metrics_addr: Option<SocketAddr>,
    /// An origin whose pages may call the service from a browser (`https://shop.example`), or `*`; repeatable, and
    /// in the variable separated by commas; none by default
    #[arg(long = "cors-origin", env = "EXPLAIND_CORS_ORIGINS", value_name = "ORIGIN")]
    pub cors_origins: Vec<String>,
    /// A key that callers must present as `Authorization: Bearer KEY`; repeatable, and in the variable separated
    /// by commas. Probes, metrics and the documentation stay open. Prefer the variable or the file: flags are
    /// seen in process listings
    #[arg(long = "api-key", env = "EXPLAIND_API_KEYS", value_name = "KEY", hide_env_values = true)]
    pub api_keys: Vec<Secret>,
    /// A file with one such key a line
    #[arg(long, env = "EXPLAIND_API_KEYS_FILE", value_name = "FILE")]
    pub api_keys_file: Option<PathBuf>,
}

/// How tensors are run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineSettings {
    /// Where models run: `cpu`, `cuda` or `cuda:N`; a device that fails stops the start
    #[arg(long, env = "EXPLAIND_DEVICE", value_name = "DEVICE", default_value_t = Device::Cpu)]
    pub device: Device,
    /// Worker threads, each with its own session of a model; by default the cores granted to the process, 2 on a GPU
    #[arg(long, env = "EXPLAIND_WORKERS", value_name = "N", default_value_t = granted_cores() as u32,
          value_parser = value_parser!(u32).range(1..=1024))]
    pub workers: u32,
    /// Threads inside one session
    #[arg(long, env = "EXPLAIND_THREADS", value_name = "N", default_value_t = 1,
          value_parser = value_parser!(u32).range(1..=1024))]
    pub threads: u32,
    /// Tokens a worker computes before it looks at deadlines and other requests again; on a GPU 4096 by default
    #[arg(long, env = "EXPLAIND_CHUNK_TOKENS", value_name = "N", default_value_t = 512,
          value_parser = value_parser!(u32).range(1..=1_048_576))]
    pub chunk_tokens: u32,
    /// Tokens that may wait in the queue, over all requests, before further ones are refused with 429
    #[arg(long, env = "EXPLAIND_QUEUE_TOKENS", value_name = "N", default_value_t = 4_000_000,
          value_parser = value_parser!(u64).range(1..))]
    pub queue_tokens: u64,
}

/// The defaults that differ from those of a processor. On a GPU one worker computes while the other feeds and reads, and
/// small chunks leave it idle (`benches/README.md`).
fn defaults_on(device: Device) -> &'static [(&'static str, &'static str)] {
    match device {
        Device::Cpu => &[],
        Device::Cuda(_) => &[("workers", "2"), ("chunk_tokens", "4096")],
    }
}

/// What one request may ask for.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitSettings {
    /// Inputs in one request
    #[arg(long, env = "EXPLAIND_MAX_INPUTS", value_name = "N", default_value_t = Limits::default().max_inputs as u32,
          value_parser = value_parser!(u32).range(1..))]
    pub max_inputs: u32,
    /// Bytes in the body of a request
    #[arg(long, env = "EXPLAIND_MAX_BODY_BYTES", value_name = "BYTES", default_value_t = 1_048_576,
          value_parser = value_parser!(u64).range(64..))]
    pub max_body_bytes: u64,
    /// Unicode code points in one text
    #[arg(long, env = "EXPLAIND_MAX_TEXT_CHARS", value_name = "N", default_value_t = Limits::default().max_text_chars as u64,
          value_parser = value_parser!(u64).range(1..))]
    pub max_text_chars: u64,
    /// Unicode code points without a place where a tokenizer may break, such as a space
    #[arg(long, env = "EXPLAIND_MAX_RUN_CHARS", value_name = "N", default_value_t = Limits::default().max_run_chars as u64,
          value_parser = value_parser!(u64).range(1..))]
    pub max_run_chars: u64,
    /// Forward and gradient passes that one request may cost
    #[arg(long, env = "EXPLAIND_MAX_PASSES", value_name = "N", default_value_t = Limits::default().max_passes,
          value_parser = value_parser!(u64).range(1..))]
    pub max_passes: u64,
    /// Milliseconds from arrival to answer when the request names none
    #[arg(long, env = "EXPLAIND_DEFAULT_TIMEOUT_MS", value_name = "MS", default_value_t = Limits::default().default_timeout_ms,
          value_parser = value_parser!(u64).range(1..))]
    pub default_timeout_ms: u64,
    /// The longest `timeout_ms` that a request may name
    #[arg(long, env = "EXPLAIND_MAX_TIMEOUT_MS", value_name = "MS", default_value_t = Limits::default().max_timeout_ms,
          value_parser = value_parser!(u64).range(1..))]
    pub max_timeout_ms: u64,
}

impl From<&LimitSettings> for Limits {
    fn from(it: &LimitSettings) -> Self {
        Self {
            max_inputs: it.max_inputs as usize,
            max_text_chars: it.max_text_chars as usize,
            max_run_chars: it.max_run_chars as usize,
            max_passes: it.max_passes,
            default_timeout_ms: it.default_timeout_ms,
            max_timeout_ms: it.max_timeout_ms,
        }
    }
}

/// How the service leaves after SIGTERM or SIGINT.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Leaving")]
pub struct DrainSettings {
    /// Milliseconds of serving on after the signal, while /readyz already says no
    #[arg(long, env = "EXPLAIND_DRAIN_DELAY_MS", value_name = "MS", default_value_t = 5_000)]
    pub drain_delay_ms: u64,
    /// Milliseconds after the signal at which requests that still run are cancelled
    #[arg(long, env = "EXPLAIND_DRAIN_LIMIT_MS", value_name = "MS", default_value_t = 20_000)]
    pub drain_limit_ms: u64,
}

impl DrainSettings {
    /// From the signal until new requests are refused.
    pub fn delay(&self) -> Duration {
        Duration::from_millis(self.drain_delay_ms)
    }

    /// From the signal until running requests are cancelled.
    pub fn limit(&self) -> Duration {
        Duration::from_millis(self.drain_limit_ms)
    }
}

/// What is written to standard error. Texts of requests never are.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Log")]
pub struct LogSettings {
    /// `json`, `text`, or `auto`: text on a terminal, JSON elsewhere
    #[arg(long, env = "EXPLAIND_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t = LogFormat::Auto)]
    pub log_format: LogFormat,
    /// The least severe events that are written: a level, or directives such as `warn,explaind=debug`
    #[arg(long, env = "EXPLAIND_LOG", value_name = "LEVEL", default_value = "info")]
    pub log: String,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// `NAME=DIR`: a model's folder and the name it is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFolder {
    /// Letters, digits, `.`, `_` and `-`: it stands in paths.
    pub name: String,
    /// The folder.
    pub folder: PathBuf,
}

impl FromStr for NamedFolder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, folder) = text.split_once('=').ok_or("expected NAME=DIR")?;
        let sane = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || !name.chars().all(sane) {
            return Err(format!("`{name}` is not a name of letters, digits, `.`, `_` and `-`"));
        }
        if folder.is_empty() {
            return Err(format!("`{name}` has no folder"));
        }
        Ok(Self { name: name.to_owned(), folder: folder.into() })
    }
}

/// A text that is compared and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    /// White space around it goes: files and variables often end in a line break.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.trim().to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> clap::Command {
        Settings::augment_args(clap::Command::new("serve"))
    }

    #[test]
    fn every_variable_is_the_field_in_capitals() {
        for arg in command().get_arguments().filter(|it| it.get_id() != "check_config") {
            let expected = format!("EXPLAIND_{}", arg.get_id().as_str().to_uppercase());
            assert_eq!(arg.get_env().and_then(|it| it.to_str()), Some(expected.as_str()));
        }
    }

    #[test]
    fn a_model_is_a_name_and_a_folder() {
        let read: NamedFolder = "sst2=models/a=b".parse().unwrap();
        assert_eq!(read, NamedFolder { name: "sst2".into(), folder: "models/a=b".into() });
        for wrong in ["models/sst2", "=dir", "name=", "a b=dir", "a/b=dir"] {
            assert!(wrong.parse::<NamedFolder>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert_eq!(format!("{:?}", Secret("hunter2".into())), "***");
    }
}
