//! `ganvae export`: writes a run's networks as files.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::arguments::CheckpointChoice;
use super::print;
use crate::base::classes::Classes;
use crate::base::names::printable;
use crate::base::usage::usage;
use crate::export::{self, Format, Verified};
use crate::run::trained::Trained;

#[derive(Debug, Args)]
pub(super) struct Export {
    /// A run's folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// File formats to write; files of an earlier export in the same folder are removed
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT,...",
        value_delimiter = ',',
        default_value = "torchscript,safetensors,onnx"
    )]
    format: Vec<Format>,
    #[command(flatten)]
    checkpoint: CheckpointChoice,
    /// Folder of the files [default: in the run export/, or export-best/ or export-step-N/ with --checkpoint]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Export {
    pub(super) fn run(&self) -> Result<u8> {
        self.out.as_deref().map_or(Ok(()), export::check_folder)?;
        // The files are compared with float32 on the CPU.
        let trained = Trained::open_checkpoint(&self.run, self.checkpoint.selection, "cpu")?;
        let (Some((config, step)), Some(networks)) = (trained.origin(), trained.networks()) else {
            let run = self.run.display();
            usage!("{run}: these are exports already; wanted a run's folder, such as runs/0001-vae-digits");
        };
        let none = Classes::default();
        let origin = config.origin(step, trained.classes().unwrap_or(&none))?;
        let out = self.out.clone().unwrap_or_else(|| self.run.join(self.checkpoint.named("export")));
        for written in export::export(&networks, &origin, &self.format, &out)? {
            let verified = match &written.verified {
                Verified::Run(differences) => match differences.iter().copied().fold(0.0, f64::max) {
                    0.0 => "exact".to_owned(),
                    largest => format!("off by {largest:.1e} at the most"),
                },
                Verified::Bits => "exact".to_owned(),
                Verified::Tests => "written from the same graph (not run here: ganvae has no ONNX runtime)".to_owned(),
            };
            print(&format!("{}  {verified}\n", printable(&written.path)))?;
        }
        Ok(0)
    }
}
