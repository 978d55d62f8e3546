//! Usage errors: one sentence, exit code 2.

use std::fmt;

/// An error in the arguments or the configuration: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Leaves the function with a [`Usage`] error.
macro_rules! usage {
    ($($arg:tt)*) => { return Err($crate::base::usage::Usage(format!($($arg)*)).into()) };
}
pub(crate) use usage;

/// The name most similar to a mistyped word, if any is close.
pub fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = names.map(|name| (strsim::jaro_winkler(name, word), name));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score > 0.8).map(|(_, name)| name)
}

/// An error message without its line breaks.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
