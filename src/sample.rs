//! A trained run put to use: opening it, and drawing samples. Imports setup's builder, checkpoint, run, config, device, grid.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tch::{Device, Tensor};

use crate::checkpoint;
use crate::config::{self, Settings, usage};
use crate::device;
use crate::export::Origin;
use crate::grid;
use crate::model::{Model, Part, noise};
use crate::nets::Shape;
use crate::run::RunDir;
use crate::seed::{Stream, seed_for};
use crate::setup;
use crate::tune::Tuning;

/// Latents drawn and decoded at a time, always as many: large counts need no more memory than small ones, and the bits of an
/// image do not depend on how many others were asked for (products round differently at other sizes).
const BATCH: i64 = 64;

/// A run's model with the weights of its newest whole checkpoint, in evaluation mode.
pub struct Trained {
    /// The model.
    pub model: Box<dyn Model>,
    /// Where its tensors are.
    pub device: Device,
}

impl Trained {
    /// Opens the run in folder `root`; `over` may set the device.
    ///
    /// # Errors
    /// When it is no run, or has no whole checkpoint.
    pub fn open(root: &Path, over: &Settings) -> Result<(Self, Origin)> {
        let run = RunDir::open(root)?;
        let (kind, settings, info) = run.config()?;
        let config = config::resolve(kind, &settings.overlaid(over)?)?;
        let device = device::open(&config.settings)?;
        let (dir, state) = checkpoint::newest_whole(&run.checkpoints())?.with_context(|| {
            format!("{} has no checkpoint yet: go on with `ganvae train --resume {}`", root.display(), run.shown())
        })?;
        state.check_model(kind)?;
        let shape = Shape { channels: info.channels, height: info.height, width: info.width };
        let per_epoch = setup::steps_per_epoch(info.train_images, config.batch_size);
        let mut model = setup::build(&config, shape, per_epoch, device)?;
        checkpoint::load(&dir, &[Part::Model], &mut |v| model.visit(v))?;
        model.end_training();
        if device == Device::Cpu {
            let threads = config.settings.threads.unwrap_or(info.tuning.threads);
            Tuning { threads, ..info.tuning }.apply(model.as_mut())?;
        }
        Ok((Trained { model, device }, Origin::new(&config, state.step)))
    }

    /// `count` images of the prior: [N,C,H,W] in [0,1] on the CPU; the same for the same seed, and the first n of more.
    ///
    /// # Errors
    /// libtorch's.
    pub fn sample(&self, count: i64, seed: u64) -> Result<Tensor> {
        let mut parts = Vec::new();
        for (i, from) in (0..count).step_by(BATCH as usize).enumerate() {
            let z = noise(seed_for(seed, 0, Stream::Samples, i as u64), &[BATCH, self.model.latent()], self.device)?;
            let x = self.model.decode(&z)?.f_narrow(0, 0, BATCH.min(count - from))?;
            parts.push(x.f_to_device(Device::Cpu)?);
        }
        Ok(Tensor::f_cat(&parts, 0)?)
    }
}

/// Draws `count` samples of a run: to a .png (one grid), a .npy ([N,C,H,W] float32), or a folder (a picture each).
///
/// Returns where they are.
///
/// # Errors
/// As [`Trained::open`]; when the output cannot be written; [`crate::config::Usage`] for a count out of range or another
/// kind of file.
pub fn sample(root: &Path, count: i64, seed: u64, out: Option<&Path>, over: &Settings) -> Result<PathBuf> {
    if !(1..=1_000_000).contains(&count) {
        usage!("--count {count}: wanted a whole number from 1 to 1000000");
    }
    let out = out.map_or_else(|| root.join("samples").join(format!("sample-{seed}.png")), Path::to_owned);
    let extension = out.extension().map(|e| e.to_string_lossy().to_lowercase());
    if !matches!(extension.as_deref(), Some("png" | "npy") | None) {
        usage!(
            "--out {}: wanted a .png for a grid, a .npy for the numbers, or a folder for single pictures",
            out.display()
        );
    }
    if extension.as_deref() == Some("png") && count > 10_000 {
        usage!("--count {count} is too many for one grid (at most 10000): give --out a folder or a .npy");
    }
    if extension.is_none() && std::fs::read_dir(&out).is_ok_and(|mut entries| entries.next().is_some()) {
        usage!("--out {}: the folder is not empty, and its files could be overwritten: name another", out.display());
    }
    let images = Trained::open(root, over)?.0.sample(count, seed)?;
    match extension.as_deref() {
        Some("png") => {
            let size = images.size();
            let columns = grid::columns_for(count as usize, size[2] as usize, size[3] as usize);
            grid::draw(&images, columns)?.save(&out)?;
        }
        Some(_) => {
            let part = out.with_extension("npy.part");
            let write = || -> Result<()> {
                images.write_npy(&part)?;
                Ok(std::fs::rename(&part, &out)?)
            };
            write()
                .inspect_err(|_| drop(std::fs::remove_file(&part)))
                .with_context(|| format!("--out {} could not be written", out.display()))?;
        }
        None => {
            std::fs::create_dir_all(&out)
                .map_err(|e| anyhow::anyhow!("--out {}: the folder could not be made ({e})", out.display()))?;
            for i in 0..count {
                grid::single(&images.f_narrow(0, i, 1)?)?.save(&out.join(format!("{i:06}.png")))?;
            }
        }
    }
    Ok(out)
}
