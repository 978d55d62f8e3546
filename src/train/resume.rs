//! Resuming a run.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{Outcome, Session, finish::is_finished};
use crate::base::progress;
use crate::base::setting::Settings;
use crate::base::signals;
use crate::base::usage::usage;
use crate::config;
use crate::config::training::OUT;
use crate::models::ModelKind;
use crate::models::schedule::is_scheduled;
use crate::models::tuning::{THREADS, TUNE};
use crate::run::checkpoint;
use crate::run::folder::{self, RunDir, RunInfo};

/// Resumes a run from its newest intact checkpoint with optimizer state, or from the beginning where there is none yet. `given` holds the flags, `asked` the
/// kind of model on the command line.
///
/// # Errors
/// As [`super::train`]; also when another process has the run, no checkpoint can be resumed from, settings or data have changed, or all
/// steps are done.
pub fn resume(root: &Path, asked: Option<ModelKind>, given: &Settings) -> Result<Outcome> {
    signals::hold()?;
    if given.given(&OUT).is_some() {
        usage!("--out is for a new run: --resume goes on in {}", root.display());
    }
    let run = RunDir::open(root)?;
    folder::check_length("--resume", root)?;
    let shown = root.display();
    let lock = run.lock()?;
    let (model, stored, info) = run.config()?;
    if let Some(asked) = asked.filter(|asked| *asked != model) {
        usage!("{shown} is a run of a {model}, and `train {asked}` was asked for: leave the {asked} out");
    }
    let began = config::resolve(model, &stored)?;
    config::refuse_changes(&began, given)?;
    let mut settings = stored.overlaid(given);
    if given.given(&THREADS).is_some() {
        // The tuning is read from [run.tuning]; the --tune of the start must not contradict the new --threads.
        settings = settings.without(&TUNE);
    }
    let config = config::resolve(model, &settings)?;
    let found = checkpoint::newest_resumable(&run.checkpoints())?;
    if let Some((_, state)) = &found {
        state.check_model(model)?;
        let file = run.path("config.toml");
        config::refuse_edits(&state.settings, &config, &file)?;
        info.refuse_edited_tuning(&state.tuning, stored.given(&THREADS).map(|n| n as u32), &file)?;
    }
    let mut tuning = info.tuning;
    tuning.threads = config.settings.given(&THREADS).map_or(tuning.threads, |n| n as u32);
    let build = || Session::build(&config, Some(tuning));
    let mut session = found.as_ref().map_or_else(build, |(dir, _)| checkpoint::built_for(dir, build))?;
    ensure!(
        session.info.data_sha256 == info.data_sha256,
        "--data {} has changed since {shown} began (its checksum is another): give the run the images it began with",
        session.setup.data
    );
    let (before, total) = (began.budget.steps(session.setup.per_epoch), session.setup.total);
    if total < before {
        usage!("--epochs and --steps may only grow: {shown} is a run of {before} steps, {total} were asked for");
    }
    if total != before && is_scheduled(&config.settings)? {
        usage!(
            "--epochs and --steps cannot change here: the schedule of {shown} ends with its {before} steps, and {total} were asked for; \
             train a new run with --init-from"
        );
    }
    session.info = RunInfo { tuning, ..info };
    let state = match found {
        Some((_, state)) if state.step >= total && !state.epoch_due && is_finished(&run, state.step) => {
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
            progress::say(&format!("{shown} has no checkpoint yet: it starts from step 0"));
            session.load_initial_weights()?;
            session.state(0.0, 0)?
        }
    };
    run.write_config(&config.kept_toml()?, &session.info)?;
    session.run(run, lock, state)
}
