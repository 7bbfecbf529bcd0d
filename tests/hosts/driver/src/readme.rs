//! Checks that the README's table of hosts agrees with the tested hosts.

use std::fs;
use std::path::Path;

use crate::hosts::Host;

/// Checks that the table has a row with the host, its major version, and the line that calls its hook.
pub(crate) fn check(host: &Host, version: &str, hook_line: Option<&str>) {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../README.md");
    let readme = fs::read_to_string(readme).expect("a README");
    let major = version.split('.').next().unwrap_or_default();
    let named = format!("{} {major}", host.title);
    let mut rows = readme.lines().filter(|row| row.starts_with('|') && row.contains(&named));
    let line = hook_line.map_or_else(|| "no hook".to_owned(), |line| line.replace('|', "\\|"));
    assert!(rows.any(|row| row.contains(&line)), "README.md has no row with {named:?} and {line:?}");
}
