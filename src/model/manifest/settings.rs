//! This file is where explaind's own settings of one model are read from the model's folder.

use std::{fs, io, path::Path};

use serde_json::json;

use super::document::{Document, pointer};
use super::{ManifestError, Misfit};

/// Name of the file in the model folder that holds [`Settings`].
pub const SETTINGS_FILE: &str = "explaind.json";

/// Settings that belong to a model rather than to the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What logits are divided by before they become probabilities (Guo et al. 2017); 1 changes nothing.
    pub temperature: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { temperature: 1.0 }
    }
}

impl Settings {
    /// Writes `explaind.json` into the folder, whole or not at all.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let text = format!("{:#}\n", json!({ "temperature": self.temperature }));
        let draft = folder.join(format!(".{SETTINGS_FILE}.{}", std::process::id()));
        fs::write(&draft, text)?;
        fs::rename(&draft, folder.join(SETTINGS_FILE)).inspect_err(|_| drop(fs::remove_file(&draft)))
    }

    /// Reads `explaind.json`; the defaults if the folder has none. Unknown keys are refused.
    pub(super) fn read(folder: &Path) -> Result<Self, ManifestError> {
        let mut settings = Self::default();
        let Some(document) = Document::read(folder, SETTINGS_FILE)? else { return Ok(settings) };
        if let Some(unknown) = document.keys().find(|&key| key != "temperature") {
            return Err(document.misfit(&pointer(&[unknown]), Misfit::UnknownKey));
        }
        if let Some(temperature) = document.number("temperature")? {
            if !(temperature.is_finite() && temperature > 0.0) {
                return Err(document.misfit("/temperature", Misfit::Expected("a number above 0")));
            }
            settings.temperature = temperature;
        }
        Ok(settings)
    }
}
