//! `explaind openapi`: prints the contract.

use std::io::Write;

use anyhow::anyhow;

use crate::api::openapi::Document;

pub(super) fn run() -> anyhow::Result<()> {
    let document = Document::build().map_err(|error| anyhow!(error))?;
    std::io::stdout().write_all(&document.text)?;
    Ok(())
}
