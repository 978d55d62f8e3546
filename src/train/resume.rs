//! Going on with a run.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{Outcome, Session};
use crate::base::progress;
use crate::base::setting::Settings;
use crate::base::signals;
use crate::base::usage::usage;
use crate::config;
use crate::config::training::OUT;
use crate::models::ModelKind;
use crate::models::tuning::{THREADS, TUNE};
use crate::run::checkpoint;
use crate::run::folder::{RunDir, RunInfo};

/// Goes on with a run where its newest whole checkpoint stands, or from its beginning where there is none yet; `given` may
/// change what does not change the run, `asked` is the kind of model that it is taken for.
///
/// # Errors
/// As [`train`]; also when another process has the run, all checkpoints are damaged, settings or data have changed, or there
/// is nothing left to do.
pub fn resume(root: &Path, asked: Option<ModelKind>, given: &Settings) -> Result<Outcome> {
    signals::hold()?;
    if given.given(&OUT).is_some() {
        usage!("--out is for a new run: --resume goes on in {}", root.display());
    }
    let run = RunDir::open(root)?;
    let lock = run.lock()?;
    let (model, stored, info) = run.config()?;
    if let Some(asked) = asked.filter(|asked| *asked != model) {
        usage!("{} is a run of a {model}, and `train {asked}` was asked for: leave the {asked} out", root.display());
    }
    let began = config::resolve(model, &stored)?;
    config::refuse_changes(&began, given)?;
    let mut settings = stored.overlaid(given);
    if given.given(&THREADS).is_some() {
        // The tuning stands in [run.tuning]; what was once asked of it must not contradict a --threads of today.
        settings = settings.without(&TUNE);
    }
    let config = config::resolve(model, &settings)?;
    let found = checkpoint::newest_whole(&run.checkpoints())?;
    if let Some((_, state)) = &found {
        state.check_model(model)?;
        let file = run.path("config.toml");
        config::refuse_edits(&state.settings, &config, &file)?;
        info.refuse_edited_tuning(&state.tuning, threads(&stored), &file)?;
    }
    let mut tuning = info.tuning;
    tuning.threads = threads(&config.settings).unwrap_or(tuning.threads);
    if config.plan.deterministic && tuning.threads > 1 && !tuning.compute.products.rounds_alike() {
        usage!("--threads {}: the run is --deterministic with products=blas, which needs --threads 1", tuning.threads);
    }
    let mut session = Session::build(&config, Some(tuning))?;
    ensure!(
        session.info.data_sha256 == info.data_sha256,
        "--data {} has changed since {} began (its checksum is another): give the run the images it began with",
        session.setup.data,
        root.display()
    );
    let before = session.setup.steps_of(began.budget);
    if session.setup.total < before {
        usage!(
            "--epochs and --steps may only grow: {} is a run of {before} steps, {} were asked for",
            root.display(),
            session.setup.total
        );
    }
    session.info = RunInfo { tuning, ..info };
    let shown = root.display();
    let state = match found {
        Some((_, state)) if state.step >= session.setup.total && !state.epoch_due => {
            checkpoint::settle(&run.checkpoints(), &state, config.keep)?;
            usage!("{shown} has done all of its {} steps: give more with --epochs or --steps", state.step);
        }
        Some((dir, state)) => {
            session.restore(&dir, &state)?;
            checkpoint::settle(&run.checkpoints(), &state, config.keep)?;
            progress::say(&format!("resuming {shown} at step {}", state.step));
            state
        }
        None => {
            progress::say(&format!("{shown} has no checkpoint yet: it starts from the beginning"));
            session.init()?;
            session.state(0.0, 0)?
        }
    };
    run.write_config(&config.kept_toml()?, &session.info)?;
    session.run(run, lock, state)
}

fn threads(s: &Settings) -> Option<u32> {
    s.given(&THREADS).map(|n| n as u32)
}
