//! The settings of a run: length, initial weights, output.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::base::setting::{Group, Setting};

/// Reaction to a divergence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnDivergence {
    /// Stop; keep the checkpoints.
    Stop,
    /// Return to the newest checkpoint, with new noise and half the learning rate.
    Rollback,
}

/// Which checkpoints have the optimizer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeepOptimizer {
    /// The newest one and the best one; the others hold weights only, a third of the size.
    Newest,
    /// Every one: training can be resumed from each.
    All,
}

/// What remains of older checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Number of newest checkpoints to keep; 0 counts as 1.
    pub checkpoints: usize,
    /// Which of them keep the optimizer's state.
    pub optimizer: KeepOptimizer,
}

/// Name of the preset ([`super::presets`]).
pub static PRESET: Setting<String> = Setting::text(
    "preset",
    "Networks and hyper-parameters: article, pytorch-vae, conv-vae, residual-vae (VAE); article, dcgan, small (few images, or few processor cores), \
     r3gan, sngan, wgan-gp (GAN), or auto, which chooses one of a GAN by number, size and channels of the images and says why [default: \
     pytorch-vae, dcgan; for pictures of a folder: conv-vae, auto; else the first with the --arch]",
)
.value_name("NAME");

/// Weights to start from.
pub static INIT_FROM: Setting<PathBuf> = Setting::path(
    "init-from",
    "Start from trained weights instead of random ones; each is found by its name: a .safetensors file, a .pt or .pth file of PyTorch (read as data: nothing in it is executed), a folder of exports, or a run (its networks and loss too, unless --preset or --arch is given)",
)
.of_a_run();

/// Passes over the training images.
pub static EPOCHS: Setting<u64> = Setting::count("epochs", "Passes over the training images")
    .value_name("EPOCHS")
    .default("10", "enough for legible digits from both models")
    .in_place_of("steps")
    .of_a_run()
    .may_change_on_resume();

/// Updates, instead of epochs.
pub static STEPS: Setting<u64> = Setting::count("steps", "Updates, instead of --epochs")
    .value_name("STEPS")
    .in_place_of("epochs")
    .of_a_run()
    .may_change_on_resume();

/// B.
pub static BATCH_SIZE: Setting<u64> =
    Setting::count("batch-size", "Images per update").default("128", "the article's and DCGAN's").value_name("IMAGES");

/// Seed of all random numbers.
pub static SEED: Setting<u64> =
    Setting::whole("seed", "Seed of all random numbers").default("0", "arbitrary").value_name("NUMBER");

/// Length of training and initial weights.
pub static TRAINING: Group =
    Group { heading: "Training", settings: &[&EPOCHS, &STEPS, &BATCH_SIZE, &SEED, &INIT_FROM] };

/// The run's folder.
pub static OUT: Setting<PathBuf> = Setting::path("out", "The run's folder [default: the next number under runs/]")
    .value_name("DIR")
    .of_a_run()
    .may_change_on_resume();

/// Steps between rows of metrics.
pub static LOG_EVERY: Setting<u64> = Setting::count("log-every", "Steps between rows of metrics")
    .default("50", "a few rows per epoch of a small data set")
    .value_name("STEPS")
    .of_a_run()
    .may_change_on_resume();

/// Steps between checkpoints.
pub static CHECKPOINT_EVERY: Setting<u64> =
    Setting::whole("checkpoint-every", "Steps between checkpoints; 0 for one at the end only [default: every epoch]")
        .value_name("STEPS")
        .of_a_run()
        .may_change_on_resume();

/// Steps between checkpoints for a better score.
pub static BEST_EVERY: Setting<u64> = Setting::count(
    "best-every",
    "Steps between checkpoints for a better held-out score (VAE); a better one within them waits in memory",
)
.default("50", "a checkpoint of a large network takes as long as several steps")
.value_name("STEPS")
.of_a_run()
.may_change_on_resume();

/// Epochs between sample grids.
pub static SAMPLE_EVERY: Setting<u64> =
    Setting::whole("sample-every", "Epochs between sample grids; 0 for none but the last")
        .default("1", "they are cheap compared with an epoch")
        .value_name("EPOCHS")
        .of_a_run()
        .may_change_on_resume();

/// Epochs between held-out scores.
pub static EVAL_EVERY: Setting<u64> =
    Setting::whole("eval-every", "Epochs between held-out scores; 0 for none but the last")
        .default("1", "they are cheap compared with an epoch")
        .value_name("EPOCHS")
        .of_a_run()
        .may_change_on_resume();

/// A score that is computed while training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScoreKind {
    /// Fréchet distance of samples from held-out images, on the features of --features.
    Fid,
    /// Kernel distance of the same.
    Kid,
    /// Importance-weighted bound on the negative log-likelihood of held-out images, 20 samples (VAE), in nats.
    Nll,
    /// Peak signal-to-noise ratio of reconstructions of held-out images (VAE), in dB.
    Psnr,
}

/// Which score is computed while training.
pub static SCORE: Setting<ScoreKind> = Setting::choice(
    "score",
    "Score images while training: --checkpoint best is then the best by it [default: none; a VAE's best is by held-out loss]",
)
.value_name("SCORE")
.of_a_run();

/// Epochs between scores.
pub static SCORE_EVERY: Setting<u64> =
    Setting::count("score-every", "Epochs between scores of --score [default: as many as make 500 updates]")
        .value_name("EPOCHS")
        .of_a_run();

/// Images of a score.
pub static SCORE_COUNT: Setting<u64> =
    Setting::whole("score-count", "Images for --score, at most as many as are held out [default: 1000]")
        .range("from 2 to 1000000", |n| (2..=1_000_000).contains(n))
        .value_name("IMAGES")
        .of_a_run();

/// Scores without improvement before a run ends.
pub static PATIENCE: Setting<u64> =
    Setting::count("patience", "End the run when this many scores of --score in a row are no better [default: never]")
        .value_name("SCORES")
        .of_a_run()
        .may_change_on_resume();

/// Scores while training.
pub static SCORES: Group = Group { heading: "Scores", settings: &[&SCORE, &SCORE_EVERY, &SCORE_COUNT, &PATIENCE] };

/// Number of newest checkpoints to keep.
pub static KEEP: Setting<u64> = Setting::count(
    "keep",
    "Number of newest checkpoints to keep, in addition to the one with the best held-out loss (VAE)",
)
.default("3", "one may be damaged, and an older one may precede a problem")
.value_name("CHECKPOINTS")
.of_a_run()
.may_change_on_resume();

/// Which checkpoints keep the optimizer's state.
pub static KEEP_OPTIMIZER: Setting<KeepOptimizer> = Setting::choice(
    "keep-optimizer",
    "Checkpoints that keep the optimizer's state, which --resume needs: the newest and the best one, or all",
)
.default("newest", "the state is about two thirds of a checkpoint")
.value_name("WHICH")
.of_a_run()
.may_change_on_resume();

/// Reaction to a divergence.
pub static ON_DIVERGENCE: Setting<OnDivergence> =
    Setting::choice("on-divergence", "What to do when a loss is no longer finite or explodes")
        .default("stop", "the cause should be examined")
        .value_name("WHAT")
        .of_a_run()
        .may_change_on_resume();

/// Maximum number of rollbacks.
pub static ROLLBACKS: Setting<u64> =
    Setting::count("rollbacks", "Maximum number of rollbacks (--on-divergence rollback)")
        .default("3", "the last one has an eighth of --lr")
        .value_name("TIMES")
        .of_a_run()
        .may_change_on_resume();

/// Folder and output of a run.
pub static RUN: Group = Group {
    heading: "Run",
    settings: &[
        &OUT,
        &LOG_EVERY,
        &CHECKPOINT_EVERY,
        &BEST_EVERY,
        &SAMPLE_EVERY,
        &EVAL_EVERY,
        &KEEP,
        &KEEP_OPTIMIZER,
        &ON_DIVERGENCE,
        &ROLLBACKS,
    ],
};
