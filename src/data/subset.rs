//! Which images of a data set are used, and what for: classes, the held-out part, limits.

use anyhow::{Result, bail};
use toml::Value;

use super::images::spread;
use super::layout::{self, Split};
use crate::base::setting::{Setting, Settings};
use crate::base::usage::{nearest, usage};

/// Below so many held-out images, scores are rough.
const FEW_HELD_OUT: usize = 50;

/// A sentence on scores that rest on few held-out images.
pub fn few_held_out(images: usize) -> Option<String> {
    let text = || {
        let (s, are) = if images == 1 { ("", "is") } else { ("s", "are") };
        format!("only {images} image{s} {are} held out, so scores are rough (see --holdout)")
    };
    (images < FEW_HELD_OUT).then(text)
}

/// How many images are held out of a set that does not say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HoldOut {
    /// A share of all.
    Share(f64),
    /// A number.
    Count(usize),
}

/// The part that is held out.
pub static HOLDOUT: Setting<HoldOut> = Setting::new(
    "holdout",
    "Share (0.2) or number (500) of images to hold out, where the data has no test set [default: 0.1]",
    "a share below 1, such as 0.1, or a whole number",
    |text| match text.contains('.') {
        true => text.parse().ok().filter(|s| *s > 0.0 && *s < 1.0).map(HoldOut::Share),
        false => text.parse().ok().filter(|n| *n > 0).map(HoldOut::Count),
    },
    |v| match v {
        HoldOut::Share(share) => Value::Float(*share),
        HoldOut::Count(count) => Value::Integer(*count as i64),
    },
)
.value_name("SHARE|N");

/// The classes to use.
pub static CLASS: Setting<String> =
    Setting::text("class", "Use only images of these classes: names with commas between them").value_name("NAME,...");

/// The largest number of training images.
pub static TRAIN_LIMIT: Setting<u64> =
    Setting::count("train-limit", "Use only N training images, evenly spread (digits: draw N)");

/// The largest number of held-out images.
pub static TEST_LIMIT: Setting<u64> =
    Setting::count("test-limit", "Use only N held-out images, evenly spread (digits: draw N)");

/// Which images are used.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    /// None where the settings do not say.
    pub holdout: Option<HoldOut>,
    /// Names of classes; empty for all.
    pub classes: Vec<String>,
    /// The largest numbers of training and held-out images.
    pub limits: [usize; 2],
    /// All images as one set, in their order: none is held out.
    pub whole: bool,
}

/// The images of both splits by their indices, and their classes.
#[derive(Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Training, held-out.
    pub splits: [Vec<usize>; 2],
    /// Names of the classes that are used; empty without classes.
    pub classes: Vec<String>,
    /// The class of each image of the set, by its index, as a number of `classes`; empty without classes.
    pub labels: Vec<u32>,
}

impl Subset {
    /// Of the settings.
    pub fn of(s: &Settings) -> Self {
        let classes = s.given(&CLASS).unwrap_or_default();
        let classes = classes.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        let limits = [&TRAIN_LIMIT, &TEST_LIMIT].map(|limit| s.given(limit).map_or(usize::MAX, |n| n as usize));
        Subset { holdout: s.given(&HOLDOUT), classes, limits, whole: false }
    }

    /// Chooses from `count` images of the set `name` with these classes (empty: none), and splits (none: to be held out here).
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for a class that there is not, for --holdout with splits, and when a split has no images.
    pub fn choose(
        &self,
        name: &str,
        count: usize,
        (classes, labels): (&[String], &[u32]),
        splits: Option<&[Split]>,
    ) -> Result<Chosen> {
        let kept = self.kept_classes(name, classes)?;
        let number = |label: u32| kept.iter().position(|c| *c == label as usize);
        let used = |i: usize| labels.get(i).is_none_or(|label| number(*label).is_some());
        let of = |split: Split| -> Vec<usize> {
            (0..count).filter(|i| used(*i) && splits.is_none_or(|s| s[*i] == split)).collect()
        };
        let splits = match splits {
            _ if self.whole => [(0..count).filter(|i| used(*i)).collect(), Vec::new()],
            Some(_) if self.holdout.is_some() => {
                usage!("--holdout is for data without a test set, and {name} has one: leave it out");
            }
            Some(_) => [of(Split::Train), of(Split::Test)],
            None => {
                let all = of(Split::Train);
                if let [only] = all[..] {
                    bail!(
                        "{name} has only one image (number {only}): give at least two, one to train on and one to hold out"
                    );
                }
                let number = match self.holdout.unwrap_or(HoldOut::Share(0.1)) {
                    HoldOut::Share(share) => (share * all.len() as f64).round().max(1.0) as usize,
                    HoldOut::Count(number) => number,
                };
                if number >= all.len() && !all.is_empty() {
                    usage!("--holdout {number}: {name} has {} images, and some must be left to train on", all.len());
                }
                let labels: Vec<u32> = all.iter().filter_map(|i| labels.get(*i)).copied().collect();
                let held_out = layout::hold_out(&labels, all.len(), number);
                let part =
                    |held: bool| all.iter().zip(&held_out).filter(|(_, h)| **h == held).map(|(i, _)| *i).collect();
                [part(false), part(true)]
            }
        };
        let [train, test] = std::array::from_fn(|s| {
            let all = &splits[s];
            spread(all.len(), if self.whole { usize::MAX } else { self.limits[s] })
                .into_iter()
                .map(|i| all[i])
                .collect::<Vec<_>>()
        });
        if train.is_empty() || (test.is_empty() && !self.whole) {
            bail!(
                "{name} has {} training and {} held-out images: there must be at least one of each",
                train.len(),
                test.len()
            );
        }
        Ok(Chosen {
            splits: [train, test],
            classes: kept.iter().map(|c| classes[*c].clone()).collect(),
            labels: labels.iter().map(|label| number(*label).unwrap_or(0) as u32).collect(),
        })
    }

    /// The numbers of the classes that are used.
    fn kept_classes(&self, name: &str, classes: &[String]) -> Result<Vec<usize>> {
        if self.classes.is_empty() {
            return Ok((0..classes.len()).collect());
        }
        if let Some(wanted) = self.classes.iter().find(|wanted| !classes.contains(wanted)) {
            match nearest(wanted, classes.iter().map(String::as_str)) {
                _ if classes.is_empty() => usage!("--class {wanted}: {name} has no classes, so leave it out"),
                Some(near) => usage!("--class {wanted}: {name} has no such class; did you mean {near}?"),
                None => usage!("--class {wanted}: {name} has no such class, wanted some of {}", classes.join(", ")),
            }
        }
        Ok((0..classes.len()).filter(|c| self.classes.contains(&classes[*c])).collect())
    }
}
