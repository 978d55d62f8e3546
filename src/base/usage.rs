//! A mistake in what was asked for: one sentence, exit code 2.

use std::fmt;

/// A mistake in what was asked for, not in what happened: exit code 2.
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

/// An error message without its line breaks.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
