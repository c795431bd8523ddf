//! `results.json`: a [`Results`] as its fields are named. Every number that was measured more than once is an object
//! with `median`, `min`, `max` and `values` in order of the repeats.

use std::fs;
use std::io;
use std::path::Path;

use super::Results;

/// Writes `results.json` into a directory.
///
/// # Errors
/// When it cannot be written.
pub fn write(results: &Results, dir: &Path) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(results)?;
    text.push('\n');
    fs::write(dir.join("results.json"), text)
}
