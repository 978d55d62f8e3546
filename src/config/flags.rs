//! Settings as command-line flags: generates clap's arguments from the declarations.

use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};
use toml::Value;

use super::all_settings;
use crate::base::names::escaped;
use crate::base::setting::{AnySetting, Settings};

/// Settings given as flags; `OF_A_RUN`: whether settings of a run's folder and length are accepted.
#[derive(Clone, Debug)]
pub struct Flags<const OF_A_RUN: bool>(pub Settings);

/// Reads any argument as [`escaped`] text, as the settings of paths are.
pub fn escaped_text() -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().map(escaped)
}

fn argument(heading: &'static str, setting: &'static dyn AnySetting) -> Arg {
    let info = setting.info();
    let mut arg = Arg::new(info.name).long(info.name).help(info.help);
    arg = arg.help_heading(heading).value_name(info.value_name);
    if let Some((value, reason)) = info.default {
        arg = arg.help(format!("{} [default: {value}]", info.help));
        arg = arg.long_help(format!("{}\n\n[default: {value}, {reason}]", info.help));
    }
    if let Some(other) = info.in_place_of {
        arg = arg.conflicts_with(other);
    }
    if info.switch {
        arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
    }
    match setting.choices() {
        choices if choices.is_empty() => arg.value_parser(escaped_text()),
        choices => arg.value_parser(PossibleValuesParser::new(choices)),
    }
}

impl<const OF_A_RUN: bool> Args for Flags<OF_A_RUN> {
    fn augment_args(command: Command) -> Command {
        all_settings().into_iter().fold(command, |command, (heading, setting)| {
            command.arg(argument(heading, setting).hide(setting.info().of_a_run && !OF_A_RUN))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const OF_A_RUN: bool> FromArgMatches for Flags<OF_A_RUN> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut settings = Settings::default();
        let refused = |sentence: String| Error::raw(ErrorKind::ValueValidation, sentence);
        for (_, setting) in all_settings() {
            let name = setting.info().name;
            let Some(text) = matches.get_one::<String>(name) else { continue };
            if setting.info().of_a_run && !OF_A_RUN {
                return Err(refused(format!("--{name} is a setting of a run, and none is made here: leave it out")));
            }
            let set = settings.set(setting, &Value::String(text.clone()));
            set.map_err(|wanted| refused(format!("--{name} {text}: wanted {wanted}")))?;
        }
        Ok(Flags(settings))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0 = self.0.overlaid(&Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}
