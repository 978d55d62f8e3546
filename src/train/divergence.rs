//! Divergence, which stops training, and warnings about values that stay poor.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::base::scalar::Scalar;

/// A value is not finite or beyond its limit: training cannot recover.
#[derive(Debug)]
pub struct Diverged(pub String);

impl fmt::Display for Diverged {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Diverged {}

/// Refuses the values of scalars, means over the updates up to `step`, when one is not finite, or is larger in magnitude than its limit;
/// the error names the value and the step.
pub fn check(prefix: &str, scalars: &[Scalar], values: &[f64], step: u64) -> Result<(), Diverged> {
    for (scalar, mean) in scalars.iter().zip(values) {
        if scalar.may_be_unknown && mean.is_nan() {
            continue;
        }
        let (name, limit) = (&scalar.key, scalar.limit.unwrap_or(f64::INFINITY));
        if !mean.is_finite() || mean.abs() > limit {
            let beyond = if mean.is_finite() { format!(", beyond {limit:.0}") } else { String::new() };
            return Err(Diverged(format!(
                "{prefix}{name} is {mean}{beyond} in the steps up to {step}: training has diverged"
            )));
        }
    }
    Ok(())
}

/// Shows each warning once, when it has applied for so many updates without a break.
#[derive(Debug)]
pub struct WarningFilter {
    /// 1,000 updates, or a quarter of a shorter run, of 100 at the least.
    patience: u64,
    /// The update from which each warning has applied.
    since: BTreeMap<&'static str, u64>,
    shown: BTreeSet<&'static str>,
}

impl WarningFilter {
    /// Of a run of this length.
    pub fn new(total: u64) -> Self {
        WarningFilter { patience: (total / 4).clamp(100, 1000), since: BTreeMap::new(), shown: BTreeSet::new() }
    }

    /// Takes the warnings that apply to the updates from `from` to `to`; gives those to show now.
    pub fn filter(&mut self, active: &[&'static str], from: u64, to: u64) -> Vec<&'static str> {
        self.since.retain(|warning, _| active.contains(warning));
        let due = |warning: &&'static str| {
            let since = *self.since.entry(warning).or_insert(from);
            to.saturating_sub(since) >= self.patience && self.shown.insert(warning)
        };
        active.iter().copied().filter(due).collect()
    }

    /// Forgets since when warnings apply, as after a rollback; those shown are not shown again.
    pub fn restart(&mut self) {
        self.since.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_or_beyond_its_limit_is_named() {
        let scalar = |key| Scalar::new(key, key, "nats", "losses");
        let limited = [scalar("loss").limit(10.0), scalar("kl").limit(3.0)];
        assert!(check("", &limited, &[-5.0, 3.0], 7).is_ok());
        for (means, part) in [
            ([f64::NAN, 1.0], "test_loss is NaN in the steps up to 7"),
            ([1.0, f64::INFINITY], "test_kl is inf in"),
            ([-11.0, 1.0], "test_loss is -11, beyond 10 in"),
        ] {
            let e = check("test_", &limited, &means, 7).unwrap_err().to_string();
            assert!(e.contains(part), "{e}");
        }
        let optional = [scalar("loss"), scalar("diversity").may_be_unknown()];
        assert!(check("", &optional, &[1.0, f64::NAN], 7).is_ok(), "not known");
        assert!(
            check("", &optional, &[1.0, f64::INFINITY], 7).is_err()
                && check("", &optional, &[f64::NAN, 1.0], 7).is_err()
        );
        assert!(
            check("", &[scalar("loss"), scalar("kl")], &[1e300, f64::NAN], 7).is_err(),
            "no limit still wants a number"
        );
    }

    #[test]
    fn a_warning_is_shown_once_and_only_when_it_lasts() {
        let mut warnings = WarningFilter::new(9000);
        assert!(warnings.filter(&["a"], 0, 500).is_empty());
        assert!(warnings.filter(&[], 500, 900).is_empty());
        assert!(warnings.filter(&["a", "b"], 900, 1800).is_empty(), "the break restarts the count");
        assert_eq!(warnings.filter(&["a"], 1800, 1900), ["a"]);
        assert!(warnings.filter(&["a"], 1900, 9000).is_empty(), "once");
        assert_eq!(warnings.filter(&["b"], 9000, 10_000), ["b"]);
        // A short run, too, has collapsed before it ends.
        let mut of_600 = WarningFilter::new(600);
        assert!(of_600.filter(&["a"], 400, 500).is_empty());
        assert_eq!(of_600.filter(&["a"], 500, 550), ["a"]);
    }
}
