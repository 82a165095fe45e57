//! Which settings contradict each other.

use std::collections::HashSet;

use super::Settings;
use crate::telemetry;

/// One contradiction, in words that name the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Conflict(String);

impl Settings {
    /// Every contradiction between settings that are fine one by one.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let mut found = Vec::new();
        let mut refuse = |holds: bool, words: String| {
            if holds {
                found.push(Conflict(words));
            }
        };
        let (limits, engine, drain) = (&self.limits, &self.engine, &self.drain);
        refuse(
            self.models.models.is_empty(),
            "no model is named: give --model NAME=DIR, EXPLAIND_MODELS or a [models] table".into(),
        );
        let mut names = HashSet::new();
        for model in &self.models.models {
            refuse(!names.insert(&model.name), format!("two models are named `{}`", model.name));
        }
        let mut companions = HashSet::new();
        for companion in &self.models.fill_mask {
            let name = &companion.name;
            refuse(!names.contains(name), format!("fill_mask names `{name}`, which is none of the models"));
            refuse(!companions.insert(name), format!("fill_mask names `{name}` twice"));
        }
        refuse(
            limits.default_timeout_ms > limits.max_timeout_ms,
            format!(
                "default_timeout_ms ({}) is longer than max_timeout_ms ({})",
                limits.default_timeout_ms, limits.max_timeout_ms
            ),
        );
        refuse(
            limits.max_text_chars > limits.max_body_bytes,
            format!(
                "max_text_chars ({}) cannot be reached: max_body_bytes is {}",
                limits.max_text_chars, limits.max_body_bytes
            ),
        );
        refuse(
            u64::from(engine.chunk_tokens) > engine.queue_tokens,
            format!(
                "chunk_tokens ({}) does not fit into queue_tokens ({})",
                engine.chunk_tokens, engine.queue_tokens
            ),
        );
        refuse(
            drain.drain_delay_ms > drain.drain_limit_ms,
            format!(
                "drain_delay_ms ({}) is longer than drain_limit_ms ({})",
                drain.drain_delay_ms, drain.drain_limit_ms
            ),
        );
        refuse(
            self.listen.metrics_addr == Some(self.listen.addr) && self.listen.addr.port() != 0,
            format!("addr and metrics_addr are both {}", self.listen.addr),
        );
        refuse(
            self.listen.api_keys.iter().any(|it| it.0.is_empty()),
            "api_keys holds an empty key, which every caller could present".into(),
        );
        for origin in &self.listen.cors_origins {
            refuse(
                !is_origin(origin),
                format!("cors_origins: `{origin}` is neither `*` nor an origin such as https://shop.example"),
            );
        }
        if let Err(reason) = telemetry::filter(&self.log) {
            refuse(true, reason);
        }
        found
    }
}

/// Whether a browser could send `text` as its `Origin`: scheme, host, and perhaps a port, in small letters.
fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return matches!(text, "*" | "null") };
    let host = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => match port.parse::<u16>() {
            Ok(_) => host,
            Err(_) => return false,
        },
        _ => rest,
    };
    let small = |text: &str, more: &str| {
        let known = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || more.contains(it);
        !text.is_empty() && text.chars().all(known)
    };
    small(scheme, "+-.") && small(host, "-._[]:")
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    fn conflicts(flags: &[&str]) -> Vec<String> {
        let command = Settings::augment_args(clap::Command::new("serve"));
        let matches = command.get_matches_from([&["serve"], flags].concat());
        let settings = Settings::from_arg_matches(&matches).unwrap();
        settings.conflicts().iter().map(Conflict::to_string).collect()
    }

    #[test]
    fn the_defaults_agree_with_each_other() {
        assert_eq!(conflicts(&["--model", "a=b"]), [""; 0]);
    }

    #[test]
    fn each_contradiction_names_its_settings() {
        let found = conflicts(&[
            "--model=a=b",
            "--model=a=c",
            "--fill-mask=c=d",
            "--default-timeout-ms=2000",
            "--max-timeout-ms=1000",
            "--max-text-chars=2000000",
            "--queue-tokens=100",
            "--drain-delay-ms=30000",
            "--metrics-addr=127.0.0.1:8080",
        ]);
        assert_eq!(found.len(), 7, "{found:#?}");
        for (words, setting) in found.iter().zip([
            "named `a`",
            "fill_mask names `c`",
            "default_timeout_ms",
            "max_text_chars",
            "queue_tokens",
            "drain_delay_ms",
            "metrics_addr",
        ]) {
            assert!(words.contains(setting), "{words}");
        }
    }

    #[test]
    fn an_origin_that_no_browser_sends_is_refused() {
        for origin in
            ["https://shop.example", "http://localhost:3000", "http://[::1]:8080", "http://[::1]", "*"]
        {
            assert_eq!(conflicts(&["--model=a=b", &format!("--cors-origin={origin}")]), [""; 0]);
        }
        for wrong in [
            "shop.example",
            "https://shop.example/",
            "https://",
            "https://Shop.example",
            "not an origin",
            "https://a:b",
        ] {
            let found = conflicts(&["--model=a=b", &format!("--cors-origin={wrong}")]);
            assert!(found.len() == 1 && found[0].contains(wrong), "{found:?}");
        }
    }

    #[test]
    fn directives_of_the_log_are_read_beforehand() {
        for wrong in ["foo=bar=baz", "warning", "info,verbose"] {
            let found = conflicts(&["--model=a=b", &format!("--log={wrong}")]);
            assert!(found.len() == 1 && found[0].starts_with("log: "), "{found:?}");
        }
        assert_eq!(conflicts(&["--model=a=b", "--log=WARN,explaind=debug,ort::session=info"]), [""; 0]);
    }

    #[test]
    fn white_space_around_a_key_is_no_part_of_it() {
        assert_eq!("one\n".parse(), Ok(crate::config::Secret("one".into())));
        assert!(conflicts(&["--model=a=b", "--api-key= "])[0].starts_with("api_keys holds an empty key"));
    }

    #[test]
    fn a_service_without_a_model_is_refused() {
        assert!(conflicts(&[])[0].starts_with("no model is named"));
    }
}
