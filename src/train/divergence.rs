//! What must stop training, and what a person should hear about.

use std::fmt;

use crate::base::scalar::Scalar;

/// Training has left the numbers that it could come back from.
#[derive(Debug)]
pub struct Diverged(pub String);

impl fmt::Display for Diverged {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Diverged {}

/// Refuses the means over the updates up to `step` when one is not finite, or is larger in magnitude than its limit.
///
/// # Errors
/// [`Diverged`], which names the value and the step.
pub fn check(prefix: &str, scalars: &[Scalar], means: &[f64], step: u64) -> Result<(), Diverged> {
    for (scalar, mean) in scalars.iter().zip(means) {
        let (name, limit) = (&scalar.key, scalar.limit.unwrap_or(f64::INFINITY));
        if mean.is_finite() && mean.abs() <= limit {
            continue;
        }
        let beyond = if mean.is_finite() { format!(", beyond {limit:.0}") } else { String::new() };
        return Err(Diverged(format!(
            "{prefix}{name} is {mean}{beyond} in the steps up to {step}: training has diverged"
        )));
    }
    Ok(())
}

/// Updates for which a worry must hold without a break before it is said.
const PATIENCE: u64 = 1000;

/// Says a worry once, when it has held for long.
#[derive(Debug, Default)]
pub struct Watch {
    since: Vec<(&'static str, u64)>,
    said: Vec<&'static str>,
}

impl Watch {
    /// Takes in what is worrying about the updates from `from` to `to`; gives what is to be said now.
    pub fn look(&mut self, worries: &[&'static str], from: u64, to: u64) -> Vec<&'static str> {
        self.since.retain(|(worry, _)| worries.contains(worry));
        let mut news = Vec::new();
        for worry in worries {
            let since = match self.since.iter().find(|(known, _)| known == worry) {
                Some((_, since)) => *since,
                None => {
                    self.since.push((worry, from));
                    from
                }
            };
            if to.saturating_sub(since) >= PATIENCE && !self.said.contains(worry) {
                self.said.push(worry);
                news.push(*worry);
            }
        }
        news
    }

    /// Starts anew, as after going back; what has been said stays said.
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
        assert!(
            check("", &[scalar("loss"), scalar("kl")], &[1e300, f64::NAN], 7).is_err(),
            "no limit still wants a number"
        );
    }

    #[test]
    fn a_worry_is_said_once_and_only_when_it_lasts() {
        let mut watch = Watch::default();
        assert!(watch.look(&["a"], 0, 500).is_empty());
        assert!(watch.look(&[], 500, 900).is_empty());
        assert!(watch.look(&["a", "b"], 900, 1800).is_empty(), "the break has begun it anew");
        assert_eq!(watch.look(&["a"], 1800, 1900), ["a"]);
        assert!(watch.look(&["a"], 1900, 9000).is_empty(), "once");
        assert_eq!(watch.look(&["b"], 9000, 10_000), ["b"]);
    }
}
