//! Why an error came about, for log lines.

use std::error::Error;
use std::iter;

/// What caused `error`, outermost first, on one line; none if it does not say.
pub(crate) fn causes(error: &(dyn Error + 'static)) -> Option<String> {
    let sources = iter::successors(error.source(), |&error| error.source());
    let texts: Vec<String> = sources.map(|source| in_one_line(&source.to_string())).collect();
    (!texts.is_empty()).then(|| texts.join(": "))
}

/// Parsers draw the place of an error over several lines, and a log line is one.
fn in_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
