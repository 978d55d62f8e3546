//! A setting is declared once; its flag, its key in a config file, its help and its check follow from the declaration.
//!
//! ```ignore
//! pub static BETA: Setting<f64> = Setting::number("beta", "Weight of the KL term")
//!     .range("from 0 to 1000", |v| (0.0..=1000.0).contains(v))
//!     .default("1", "the ELBO");
//! let beta = settings.get(&BETA)?;
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use toml::Value;

use super::names::{escaped, unescaped};
use super::usage::usage;

/// The largest integer that TOML, JSON and double precision represent exactly.
const LARGEST: u64 = 1 << 53;

/// The type-independent part of a setting.
#[derive(Clone, Copy, Debug)]
pub struct SettingInfo {
    /// The flag without its dashes, and the key in a config file.
    pub name: &'static str,
    /// One line of the help.
    pub help: &'static str,
    /// Placeholder of the value in the help: its unit, where it has one, such as `EPOCHS`.
    pub value_name: &'static str,
    /// The default, as text after a flag, and its reason.
    pub default: Option<(&'static str, &'static str)>,
    /// Whether it may change on resume.
    pub may_change: bool,
    /// Whether it concerns the folder or the length of a run.
    pub of_a_run: bool,
    /// Whether the flag alone means `true`.
    pub switch: bool,
    /// An alternative setting: the later of the two is used.
    pub in_place_of: Option<&'static str>,
}

/// A setting of type T.
pub struct Setting<T: 'static> {
    info: SettingInfo,
    wanted: &'static str,
    range: (&'static str, fn(&T) -> bool),
    read: fn(&str) -> Option<T>,
    write: fn(&T) -> Value,
    choices: fn() -> Vec<PossibleValue>,
}

impl<T> Setting<T> {
    /// A setting whose text `read` understands (none: it is not `wanted`) and whose value `write` writes.
    pub const fn new(
        name: &'static str,
        help: &'static str,
        wanted: &'static str,
        read: fn(&str) -> Option<T>,
        write: fn(&T) -> Value,
    ) -> Self {
        let info = SettingInfo {
            name,
            help,
            value_name: "VALUE",
            default: None,
            may_change: false,
            of_a_run: false,
            switch: false,
            in_place_of: None,
        };
        Setting { info, wanted, range: ("", |_| true), read, write, choices: Vec::new }
    }

    /// The default and its reason.
    pub const fn default(mut self, text: &'static str, reason: &'static str) -> Self {
        self.info.default = Some((text, reason));
        self
    }

    /// Only values that `fits` accepts, which `phrase` describes: `from 0 to 1`.
    pub const fn range(mut self, phrase: &'static str, fits: fn(&T) -> bool) -> Self {
        self.range = (phrase, fits);
        self
    }

    /// Placeholder of the value in the help: its unit, where it has one.
    pub const fn value_name(mut self, name: &'static str) -> Self {
        self.info.value_name = name;
        self
    }

    /// It may change on resume.
    pub const fn may_change_on_resume(mut self) -> Self {
        self.info.may_change = true;
        self
    }

    /// It concerns the folder or the length of a run.
    pub const fn of_a_run(mut self) -> Self {
        self.info.of_a_run = true;
        self
    }

    /// It is an alternative to another setting: the later of the two is used.
    pub const fn in_place_of(mut self, other: &'static str) -> Self {
        self.info.in_place_of = Some(other);
        self
    }

    /// The flag without its dashes.
    pub const fn name(&self) -> &'static str {
        self.info.name
    }

    fn checked(&self, text: &str) -> Option<T> {
        (self.read)(text).filter(self.range.1)
    }
}

impl Setting<f64> {
    /// A real number.
    pub const fn number(name: &'static str, help: &'static str) -> Self {
        Setting::new(name, help, "a number", |text| text.parse().ok(), |v| Value::Float(*v)).value_name("NUMBER")
    }
}

impl Setting<u64> {
    /// A whole number, 0 or more.
    pub const fn whole(name: &'static str, help: &'static str) -> Self {
        let read = |text: &str| text.parse().ok().filter(|n| *n <= LARGEST);
        Setting::new(name, help, "a whole number", read, |v| Value::Integer(*v as i64))
            .range("from 0 to 9007199254740992", |_| true)
            .value_name("N")
    }

    /// [`Setting::whole`], 1 or more.
    pub const fn count(name: &'static str, help: &'static str) -> Self {
        Setting::whole(name, help).range("from 1 to 9007199254740992", |n| *n > 0)
    }
}

impl Setting<bool> {
    /// On or off; the flag alone means on.
    pub const fn switch(name: &'static str, help: &'static str) -> Self {
        let on_or_off = || vec![PossibleValue::new("true"), PossibleValue::new("false")];
        let mut setting = Setting::new(name, help, "true or false", |text| text.parse().ok(), |v| Value::Boolean(*v));
        (setting.choices, setting.info.switch) = (on_or_off, true);
        setting
    }
}

impl Setting<String> {
    /// Any text.
    pub const fn text(name: &'static str, help: &'static str) -> Self {
        Setting::new(name, help, "text", |text| Some(text.to_owned()), |v| Value::String(v.clone()))
    }
}

impl Setting<PathBuf> {
    /// A path, as text in the form of [`escaped`]: bytes that are not UTF-8, control characters and backslashes are `\xHH`.
    pub const fn path(name: &'static str, help: &'static str) -> Self {
        let read = |text: &str| (!text.is_empty()).then(|| unescaped(text));
        Setting::new(name, help, "a path", read, |v| Value::String(escaped(v))).value_name("PATH")
    }
}

impl<T: ValueEnum> Setting<T> {
    /// One of the values of T.
    pub const fn choice(name: &'static str, help: &'static str) -> Self {
        let mut setting = Setting::new(
            name,
            help,
            "one of its names",
            |text| T::from_str(text, false).ok(),
            |v| Value::String(choice_name(v)),
        )
        .value_name("NAME");
        setting.choices = || T::value_variants().iter().filter_map(T::to_possible_value).collect();
        setting
    }
}

/// How a value of an enum is written on the command line.
pub fn choice_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
}

/// All values of an enum, as `a or b`.
pub fn choice_names<T: ValueEnum>() -> String {
    T::value_variants().iter().map(choice_name).collect::<Vec<_>>().join(" or ")
}

/// A setting of any type.
pub trait AnySetting: Sync {
    /// The type-independent part.
    fn info(&self) -> &SettingInfo;

    /// The possible values; empty if it is not a choice.
    fn choices(&self) -> Vec<PossibleValue>;

    /// The valid values, for the help: `a number from 0 to 1`; empty for any text, any path and choices.
    fn range(&self) -> String;

    /// The normalised value, or a description of the valid values.
    ///
    /// # Errors
    /// `a number from 0 to 1`.
    fn check(&self, value: &Value) -> Result<Value, String>;
}

impl<T> AnySetting for Setting<T> {
    fn info(&self) -> &SettingInfo {
        &self.info
    }

    fn choices(&self) -> Vec<PossibleValue> {
        (self.choices)()
    }

    fn range(&self) -> String {
        let range = self.range.0.replace(&format!(" to {LARGEST}"), " up");
        if range.is_empty() { range } else { format!("{} {range}", self.wanted) }
    }

    fn check(&self, value: &Value) -> Result<Value, String> {
        text_of(value).and_then(|text| self.checked(&text)).map(|v| (self.write)(&v)).ok_or_else(|| {
            let choices: Vec<_> = self.choices().iter().map(|c| c.get_name().to_owned()).collect();
            match choices.as_slice() {
                [] => format!("{} {}", self.wanted, self.range.0).trim_end().to_owned(),
                all => all.join(" or "),
            }
        })
    }
}

/// A value of a config file as it would be written after a flag; none for what no flag takes, such as a table.
pub fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Some(value.to_string()),
        Value::Array(all) if all.is_empty() => Some("none".into()),
        Value::Array(all) => {
            let numbers: Option<Vec<_>> = all.iter().map(|v| v.as_integer().map(|n| n.to_string())).collect();
            Some(numbers?.join(","))
        }
        Value::Datetime(_) | Value::Table(_) => None,
    }
}

/// Settings under one heading of the help.
pub struct Group {
    /// The heading.
    pub heading: &'static str,
    /// In the order of the help.
    pub settings: &'static [&'static dyn AnySetting],
}

/// Checked values of settings.
#[derive(Clone, Default)]
pub struct Settings(BTreeMap<&'static str, (&'static SettingInfo, Value)>);

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(name, (_, value))| (name, value))).finish()
    }
}

impl Settings {
    /// The value, or the default where none is set.
    ///
    /// # Errors
    /// [`super::usage::Usage`] where there is neither.
    pub fn get<T>(&self, setting: &Setting<T>) -> Result<T> {
        let default = || setting.info.default.and_then(|(text, _)| setting.checked(text));
        match self.given(setting).or_else(default) {
            Some(value) => Ok(value),
            None => usage!("--{} has no value: set it, or name a --preset that does", setting.info.name),
        }
    }

    /// The value that is set.
    pub fn given<T>(&self, setting: &Setting<T>) -> Option<T> {
        self.value(setting.info.name).and_then(text_of).and_then(|text| setting.checked(&text))
    }

    /// The value that is set, as TOML.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).map(|(_, value)| value)
    }

    /// Sets a value, which must be one that the setting accepts.
    pub fn with<T>(mut self, setting: &'static Setting<T>, value: T) -> Self {
        self.put(&setting.info, (setting.write)(&value));
        self
    }

    /// [`Settings::with`], where there is a value.
    pub fn with_some<T>(self, setting: &'static Setting<T>, value: Option<T>) -> Self {
        match value {
            Some(value) => self.with(setting, value),
            None => self,
        }
    }

    /// Without a value for this setting.
    pub fn without<T>(mut self, setting: &Setting<T>) -> Self {
        self.0.remove(setting.info.name);
        self
    }

    /// All but the settings of these names.
    pub fn without_names(mut self, names: &[&str]) -> Self {
        self.0.retain(|name, _| !names.contains(name));
        self
    }

    /// The values of these settings alone.
    pub fn only(mut self, names: &[&str]) -> Self {
        self.0.retain(|name, _| names.contains(name));
        self
    }

    /// Sets a value from a flag or a config file.
    ///
    /// # Errors
    /// A description of the valid values.
    pub fn set(&mut self, setting: &'static dyn AnySetting, value: &Value) -> Result<(), String> {
        let checked = setting.check(value)?;
        self.put(setting.info(), checked);
        Ok(())
    }

    fn put(&mut self, info: &'static SettingInfo, value: Value) {
        if let Some(other) = info.in_place_of {
            self.0.remove(other);
        }
        self.0.insert(info.name, (info, value));
    }

    /// These values, overridden by those of `over`.
    pub fn overlaid(&self, over: &Settings) -> Settings {
        let mut all = self.clone();
        for (info, value) in over.0.values() {
            all.put(info, value.clone());
        }
        all
    }

    /// Every value that is set, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static SettingInfo, &Value)> {
        self.0.values().map(|(info, value)| (*info, value))
    }
}
