//! The settings of a run itself: how long, from where, what it writes.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::base::setting::{Group, Setting};

/// What to do when training has diverged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnDivergence {
    /// Stop; the checkpoints before stay.
    Stop,
    /// Go back to the newest checkpoint, with fresh noise and half the learning rate.
    Rollback,
}

/// Name of the preset ([`super::presets`]).
pub static PRESET: Setting<String> = Setting::text(
    "preset",
    "Networks and hyper-parameters that belong together: article, pytorch-vae, conv-vae (VAE); article, dcgan (GAN) [default: \
     pytorch-vae, dcgan; with --arch: conv-vae, article]",
)
.value_name("NAME");

/// Weights to start from.
pub static INIT_FROM: Setting<PathBuf> = Setting::path(
    "init-from",
    "Start from these weights, by key: a .safetensors file, a .pt or .pth file of PyTorch (read as data: nothing in it is executed), a folder of exports, or a run",
)
.of_a_run();

/// Passes over the training images.
pub static EPOCHS: Setting<u64> = Setting::count("epochs", "Passes over the training images")
    .default("10", "digits of both models can be read by then")
    .in_place_of("steps")
    .of_a_run()
    .may_change_on_resume();

/// Updates, in place of epochs.
pub static STEPS: Setting<u64> =
    Setting::count("steps", "Updates, in place of --epochs").in_place_of("epochs").of_a_run().may_change_on_resume();

/// B.
pub static BATCH_SIZE: Setting<u64> =
    Setting::count("batch-size", "Images for each update").default("128", "the article's and DCGAN's");

/// Everything random follows from it.
pub static SEED: Setting<u64> = Setting::whole("seed", "Everything random follows from it").default("0", "any will do");

/// How long to train, and from where.
pub static TRAINING: Group =
    Group { heading: "Training", settings: &[&EPOCHS, &STEPS, &BATCH_SIZE, &SEED, &INIT_FROM] };

/// The run's folder.
pub static OUT: Setting<PathBuf> = Setting::path("out", "The run's folder [default: the next number under runs/]")
    .value_name("DIR")
    .of_a_run()
    .may_change_on_resume();

/// Steps between rows of metrics.
pub static LOG_EVERY: Setting<u64> = Setting::count("log-every", "Steps between rows of metrics")
    .default("50", "some rows for each epoch of a small data set")
    .value_name("STEPS")
    .of_a_run()
    .may_change_on_resume();

/// Steps between checkpoints.
pub static CHECKPOINT_EVERY: Setting<u64> =
    Setting::whole("checkpoint-every", "Steps between checkpoints; 0 for one at the end only [default: every epoch]")
        .value_name("STEPS")
        .of_a_run()
        .may_change_on_resume();

/// Epochs between sample grids.
pub static SAMPLE_EVERY: Setting<u64> =
    Setting::whole("sample-every", "Epochs between sample grids; 0 for none but the last")
        .default("1", "they are cheap beside an epoch")
        .value_name("EPOCHS")
        .of_a_run()
        .may_change_on_resume();

/// Epochs between held-out scores.
pub static EVAL_EVERY: Setting<u64> =
    Setting::whole("eval-every", "Epochs between held-out scores; 0 for none but the last")
        .default("1", "they are cheap beside an epoch")
        .value_name("EPOCHS")
        .of_a_run()
        .may_change_on_resume();

/// Newest checkpoints that are kept.
pub static KEEP: Setting<u64> = Setting::count(
    "keep",
    "Newest checkpoints that are kept; beside them stays the one with the best held-out loss (VAE)",
)
.default("3", "one may be damaged, and one older than what went wrong")
.of_a_run()
.may_change_on_resume();

/// What to do when training diverges.
pub static ON_DIVERGENCE: Setting<OnDivergence> =
    Setting::choice("on-divergence", "What to do when a loss is no longer finite or explodes")
        .default("stop", "a person should look")
        .value_name("WHAT")
        .of_a_run()
        .may_change_on_resume();

/// How often training may go back.
pub static ROLLBACKS: Setting<u64> = Setting::count("rollbacks", "How often --on-divergence rollback may go back")
    .default("3", "an eighth of the learning rate that was asked for")
    .value_name("K")
    .of_a_run()
    .may_change_on_resume();

/// Where a run is and what it writes.
pub static RUN: Group = Group {
    heading: "Run",
    settings: &[&OUT, &LOG_EVERY, &CHECKPOINT_EVERY, &SAMPLE_EVERY, &EVAL_EVERY, &KEEP, &ON_DIVERGENCE, &ROLLBACKS],
};
