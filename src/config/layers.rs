//! Flag over variable over file over default.
//!
//! The command line parser already knows flags, variables and defaults. The file joins by its values being
//! handed to the same parser as flags, for the settings that neither a flag nor a variable gives: one
//! parser, one set of bounds, one wording of errors.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};
use toml::{Table, Value};

use super::defaults_on;
use crate::runtime::Device;

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// The environment.
    Variable,
    /// The TOML file.
    File,
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "flag",
            Self::Variable => "variable",
            Self::File => "file",
            Self::Default => "default",
        })
    }
}

/// One resolved setting as it may be shown: secrets are masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key of the TOML file.
    pub name: String,
    /// The value as it was written, `***` for a secret.
    pub value: String,
    /// Who said so.
    pub source: Source,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} ({})", self.name, self.value, self.source)
    }
}

/// Why settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line or a variable does not parse; also carries `--help` and `--version`.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The file cannot be read or is no TOML.
    #[error("settings file {path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// The reader's words.
        cause: String,
    },
    /// Variables with our prefix that name no setting.
    #[error("unknown variable{} {}: see `explaind serve --help`", if .0.len() == 1 { "" } else { "s" }, .0.join(", "))]
    UnknownVariables(Vec<String>),
}

/// Parses `argv` with `command`, whose subcommand `serve` takes its settings in layers. The listing is
/// empty for every other subcommand.
///
/// # Errors
/// [`ConfigError`]: an unknown flag, key or variable, a value out of its bounds, an unreadable file.
pub fn resolve(
    command: Command,
    argv: Vec<OsString>,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<(ArgMatches, Vec<Entry>), ConfigError> {
    let matches = command.clone().try_get_matches_from(argv.clone())?;
    let Some(("serve", given)) = matches.subcommand() else {
        return Ok((matches, Vec::new()));
    };
    let command = splitting_variables(command, given);
    let matches = command.clone().try_get_matches_from(argv.clone())?;
    let given = matches.subcommand_matches("serve").expect("matched before");
    let serve = command.find_subcommand("serve").expect("a subcommand that was matched").clone();
    let unknown = unknown_variables(&serve, variables);
    if !unknown.is_empty() {
        return Err(ConfigError::UnknownVariables(unknown));
    }
    let (mut argv, mut from_file) = (argv, BTreeSet::new());
    let mut command = with_defaults_of_device(command, given);
    if let Some(path) = given.get_one::<PathBuf>("config") {
        let failed = |cause: String| ConfigError::File { path: path.clone(), cause };
        let (flags, names) = flags_of_file(path, &serve, given).map_err(failed)?;
        argv.extend(flags);
        let read = command.clone().try_get_matches_from(argv.clone());
        let read = read.map_err(|error| failed(words(&error)))?;
        command = with_defaults_of_device(command, read.subcommand_matches("serve").expect("matched before"));
        from_file = names;
    }
    let matches = command.try_get_matches_from(argv)?;
    let given = matches.subcommand_matches("serve").expect("matched before");
    let listing = entries(&serve, given, &from_file);
    Ok((matches, listing))
}

/// Some defaults suit a device, which any of the layers may have named.
fn with_defaults_of_device(command: Command, given: &ArgMatches) -> Command {
    let device = given.get_one::<Device>("device").copied().unwrap_or_default();
    command.mut_subcommand("serve", |serve| {
        defaults_on(device)
            .iter()
            .fold(serve, |serve, (name, value)| serve.mut_arg(*name, |arg| arg.default_value(*value)))
    })
}

/// A variable holds its list in one text, separated by commas. A flag is given once for each item and TOML has
/// arrays, so that there an item may hold a comma.
fn splitting_variables(command: Command, given: &ArgMatches) -> Command {
    let is_list = |arg: &Arg| matches!(arg.get_action(), ArgAction::Append);
    let from_variable =
        |arg: &Arg| given.value_source(arg.get_id().as_str()) == Some(ValueSource::EnvVariable);
    command.mut_subcommand("serve", |serve| {
        serve
            .mut_args(|arg| if is_list(&arg) && from_variable(&arg) { arg.value_delimiter(',') } else { arg })
    })
}

/// The file's settings as flags, without those that are given otherwise, and their names.
fn flags_of_file(
    path: &Path,
    serve: &Command,
    given: &ArgMatches,
) -> Result<(Vec<OsString>, BTreeSet<String>), String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| located(&error, &text))?;
    let (mut flags, mut names) = (Vec::new(), BTreeSet::new());
    for (key, value) in table {
        let arg = setting(serve, &key).ok_or_else(|| unknown_key(serve, &key))?;
        let elsewhere =
            matches!(given.value_source(&key), Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        if elsewhere {
            continue;
        }
        if is_one(arg, &value) {
            return Err(format!("`{key}` takes one value"));
        }
        let long = arg.get_long().expect("every setting has a flag");
        let values = spelled(&value).ok_or_else(|| format!("`{key}` is not a value of a setting"))?;
        flags.extend(values.into_iter().map(|it| format!("--{long}={it}").into()));
        names.insert(key);
    }
    Ok((flags, names))
}

/// The parser's words and the line that they are about, which is not repeated: it may hold a key.
fn located(error: &toml::de::Error, text: &str) -> String {
    let line = |it: std::ops::Range<usize>| text.get(..it.start).map_or(1, |it| it.matches('\n').count() + 1);
    match error.span().map(line) {
        Some(line) => format!("line {line}: {}", error.message()),
        None => error.message().to_owned(),
    }
}

/// Is it several values for a setting that has one?
fn is_one(arg: &Arg, value: &Value) -> bool {
    !matches!(arg.get_action(), ArgAction::Append) && matches!(value, Value::Array(_) | Value::Table(_))
}

/// The flag of a key. The file names no further file and asks for no dry run.
fn setting<'a>(serve: &'a Command, key: &str) -> Option<&'a Arg> {
    serve.get_arguments().find(|it| it.get_id() == key && !matches!(key, "config" | "check_config" | "help"))
}

fn unknown_key(serve: &Command, key: &str) -> String {
    let known: Vec<&str> = serve
        .get_arguments()
        .map(|it| it.get_id().as_str())
        .filter(|it| setting(serve, it).is_some())
        .collect();
    format!("unknown key `{key}`; the keys are {}", known.join(", "))
}

/// A TOML value as the texts of one or more flags; a table is `key=value` pairs.
fn spelled(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(items) => items.iter().map(scalar).collect(),
        Value::Table(pairs) => pairs.iter().map(|(key, it)| Some(format!("{key}={}", scalar(it)?))).collect(),
        other => Some(vec![scalar(other)?]),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(yes) => Some(yes.to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}

/// Variables with our prefix that no setting has. Those in which Kubernetes describes a service of our name to
/// pods are nobody's mistake.
fn unknown_variables(serve: &Command, variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    let known: BTreeSet<&OsStr> = serve.get_arguments().filter_map(Arg::get_env).collect();
    let mut unknown: Vec<String> = variables
        .filter(|(name, _)| {
            name.to_string_lossy().starts_with("EXPLAIND_") && !known.contains(name.as_os_str())
        })
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .filter(|name| !is_service_link(name))
        .collect();
    unknown.sort();
    unknown
}

/// `EXPLAIND_SERVICE_HOST`, `EXPLAIND_SERVICE_PORT` and one for each port's name; `EXPLAIND_PORT`, and for each
/// port `EXPLAIND_PORT_8080_TCP` with `_PROTO`, `_PORT` or `_ADDR` behind it.
fn is_service_link(name: &str) -> bool {
    let of_port = |rest: &str| {
        let (port, rest) = rest.split_once('_').unwrap_or((rest, ""));
        let protocol = rest.split('_').next().unwrap_or_default();
        !port.is_empty()
            && port.bytes().all(|it| it.is_ascii_digit())
            && matches!(protocol, "TCP" | "UDP" | "SCTP")
    };
    match name.strip_prefix("EXPLAIND_") {
        Some("SERVICE_HOST" | "SERVICE_PORT" | "PORT") => true,
        Some(rest) => rest.starts_with("SERVICE_PORT_") || rest.strip_prefix("PORT_").is_some_and(of_port),
        None => false,
    }
}

fn entries(serve: &Command, given: &ArgMatches, from_file: &BTreeSet<String>) -> Vec<Entry> {
    serve.get_arguments().filter_map(|arg| entry(arg, given, from_file)).collect()
}

/// `None` for a setting without a value.
fn entry(arg: &Arg, given: &ArgMatches, from_file: &BTreeSet<String>) -> Option<Entry> {
    let name = arg.get_id().as_str();
    if matches!(name, "help" | "check_config") {
        return None;
    }
    let raw = given.get_raw(name)?;
    let value = match arg.is_hide_env_values_set() {
        true => "***".to_owned(),
        false => raw.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(","),
    };
    let source = match given.value_source(name)? {
        _ if from_file.contains(name) => Source::File,
        ValueSource::CommandLine => Source::Flag,
        ValueSource::EnvVariable => Source::Variable,
        _ => Source::Default,
    };
    Some(Entry { name: name.to_owned(), value, source })
}

/// The parser's first line, without its prefix and its advice about flags.
fn words(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}
