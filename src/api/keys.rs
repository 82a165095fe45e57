//! The keys that callers may have to present.

use std::{fs, io};

use sha2::{Digest, Sha256};

use crate::config::ListenSettings;

/// Digests of the keys that are admitted; everybody is admitted when there are none.
#[derive(Default)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// The keys of the settings and of the keys' file.
    ///
    /// # Errors
    /// The file cannot be read, or it holds no key: an empty file must not open the door.
    pub fn read(settings: &ListenSettings) -> io::Result<Self> {
        let mut keys: Vec<[u8; 32]> = settings.api_keys.iter().map(|it| digest(&it.0)).collect();
        if let Some(path) = &settings.api_keys_file {
            let named =
                |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            let text = fs::read_to_string(path).map_err(named)?;
            let lines: Vec<&str> = text.lines().map(str::trim).filter(|it| !it.is_empty()).collect();
            if lines.is_empty() {
                return Err(named(io::Error::other("the file holds no key")));
            }
            keys.extend(lines.into_iter().map(digest));
        }
        Ok(Self(keys))
    }

    /// Whether `given` opens the door. Digests are compared, all of them, without an early end.
    pub fn admit(&self, given: &str) -> bool {
        let given = digest(given);
        let same = |key: &[u8; 32]| key.iter().zip(&given).fold(0, |acc, (a, b)| acc | (a ^ b)) == 0;
        self.0.is_empty() || self.0.iter().fold(false, |found, key| found | same(key))
    }

    /// Whether any key is asked for.
    pub fn asked(&self) -> bool {
        !self.0.is_empty()
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_keys_everybody_may_enter() {
        assert!(Keys::default().admit(""));
    }

    #[test]
    fn with_keys_only_they_open() {
        let keys = Keys(vec![digest("one"), digest("two")]);
        assert!(keys.admit("one") && keys.admit("two"));
        assert!(!keys.admit("") && !keys.admit("three"));
    }
}
