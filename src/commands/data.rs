//! `ganvae data`: describes a data set.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::arguments::check_ending;
use super::print;
use crate::base::names::printable;
use crate::base::usage::usage;
use crate::config::flags::{GroupFlags, OfData, escaped_text};
use crate::data::{self, DATA, cache, cache_dir, describe};

#[derive(Debug, Args)]
pub(super) struct Data {
    /// What `train --data` takes: digits, mnist, fashion-mnist, kmnist, or a folder or file
    #[arg(value_name = "SPEC", value_parser = escaped_text(), required_unless_present = "clear_cache")]
    spec: Option<String>,
    /// Draw a preview grid into this file
    #[arg(long, value_name = "FILE.png")]
    out: Option<PathBuf>,
    /// Remove all decoded pictures from the cache
    #[arg(long)]
    clear_cache: bool,
    #[command(flatten)]
    flags: GroupFlags<OfData>,
}

impl Data {
    pub(super) fn run(&self) -> Result<u8> {
        self.out.as_deref().map_or(Ok(()), |out| check_ending("out", out, &["png"]))?;
        let mut text = String::new();
        if self.clear_cache {
            let Some(dir) = cache_dir(&self.flags.0) else {
                usage!("--clear-cache: no cache is known, because HOME is not set or --cache is off: give --cache DIR");
            };
            let (files, bytes) = cache::prune(&dir, Duration::ZERO);
            text = format!("removed {files} files of {:.1} MB from {}\n", bytes as f64 / 1e6, printable(&dir));
        }
        if let Some(spec) = &self.spec {
            let source = data::open(&self.flags.0.clone().with(&DATA, spec.clone()))?;
            text.push_str(&describe::describe(&source));
            if let Some(out) = &self.out {
                describe::preview(&source, out)?;
                text.push_str(&format!("preview   {}\n", printable(out)));
            }
        }
        print(&text)
    }
}
