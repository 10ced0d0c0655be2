//! The system's list of processes, from `/proc`.

use std::fs;

use anyhow::{Context, Result};

/// One line of the system's list of processes.
struct Entry {
    id: u32,
    parent: u32,
    group: i32,
    dead: bool,
}

/// Finds the child of `parent` that was started with these words next to each other.
///
/// # Errors
/// If there is none.
pub fn find_child(parent: u32, words: &[&str]) -> Result<u32> {
    let wanted = words.join("\0");
    let fits = |entry: &Entry| {
        let line = fs::read(format!("/proc/{}/cmdline", entry.id)).unwrap_or_default();
        entry.parent == parent && !entry.dead && String::from_utf8_lossy(&line).contains(&wanted)
    };
    let found = list()?.into_iter().find(fits);
    found
        .map(|entry| entry.id)
        .with_context(|| format!("process {parent} has no child '{}'", words.join(" ")))
}

/// Counts the processes of a group that still run.
///
/// # Errors
/// If the list of processes cannot be read.
pub fn count_alive(group: i32) -> Result<usize> {
    Ok(list()?.iter().filter(|entry| entry.group == group && !entry.dead).count())
}

fn list() -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for file in fs::read_dir("/proc")? {
        let name = file?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that ends while the list is read is not in it.
        let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
        entries.extend(parse_stat(id, &stat));
    }
    Ok(entries)
}

/// Reads state, parent and group, which follow the name in parentheses (proc(5)).
fn parse_stat(id: u32, stat: &str) -> Option<Entry> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let dead = matches!(fields.next()?, "Z" | "X");
    Some(Entry { id, parent: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()?, dead })
}
