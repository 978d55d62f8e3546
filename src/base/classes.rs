//! The classes of a set of images.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::usage::usage;

/// Images of a class in a row of a grid.
pub const ROW: i64 = 8;
/// Most rows of a grid for which no number of images is given.
const ROWS: i64 = 16;

/// Names of the classes by number, and how often each is drawn in training.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classes {
    /// Names; empty without classes.
    pub names: Vec<String>,
    /// Shares of the images, which need not sum to 1; one for each name.
    pub shares: Vec<u64>,
}

impl Classes {
    /// Classes that are drawn equally often.
    pub fn equal(names: Vec<String>) -> Self {
        Classes { shares: vec![1; names.len()], names }
    }

    /// Classes that are drawn as often as their numbers occur among `labels`.
    pub fn counted(names: Vec<String>, labels: &[u32]) -> Self {
        let mut shares = vec![0; names.len()];
        for label in labels {
            if let Some(share) = shares.get_mut(*label as usize) {
                *share += 1;
            }
        }
        Classes { names, shares }
    }

    /// The same, of which those that are drawn at all are drawn equally often.
    pub fn balanced(mut self) -> Self {
        self.shares.iter_mut().for_each(|share| *share = (*share).min(1));
        self
    }

    /// K, the number of classes.
    pub fn len(&self) -> i64 {
        self.names.len() as i64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The number of the class with this name, or else this number; `flag` names the class in errors.
    ///
    /// # Errors
    /// [`super::usage::Usage`] for an unknown class, with those that there are.
    pub fn number(&self, flag: &str, class: &str) -> Result<i64> {
        let class = class.trim();
        let by_number = || class.parse::<usize>().ok().filter(|n| *n < self.names.len());
        let Some(number) = self.names.iter().position(|name| name == class).or_else(by_number) else {
            const SHOWN: usize = 20;
            let more = if self.names.len() > SHOWN { ", ..." } else { "" };
            let names = self.names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            usage!("{flag} {class}: no such class; there are {names}{more} (or 0 to {})", self.names.len() - 1);
        };
        Ok(number as i64)
    }

    /// Classes drawn by their shares: uniform numbers [N] in [0,1) -> class numbers [N], int64.
    ///
    /// # Errors
    /// libtorch's.
    pub fn drawn(&self, uniform: &Tensor) -> Result<Tensor> {
        let total: u64 = self.shares.iter().sum();
        let mut sum = 0;
        let upper: Vec<f64> = self
            .shares
            .iter()
            .map(|share| {
                sum += share;
                sum as f64 / total.max(1) as f64
            })
            .collect();
        // The classes whose upper limit is at or below the number come before its own.
        let upper = Tensor::f_from_slice(&upper)?.f_to_device(uniform.device())?;
        let below = upper.f_le_tensor(&uniform.f_to_kind(Kind::Double)?.f_unsqueeze(1)?)?; // [N,K]
        Ok(below.f_sum_dim_intlist(1, false, Kind::Int64)?.f_clamp_max(self.len() - 1)?)
    }

    /// Images of a grid with a row for each class, of sixteen at the most.
    pub fn in_grid(&self) -> i64 {
        ROW * self.len().min(ROWS)
    }

    /// The classes of images `from` to `from + count` of a grid with a row of eight for each class in turn: [count], int64.
    ///
    /// # Errors
    /// libtorch's.
    pub fn in_rows(&self, from: i64, count: i64, device: Device) -> Result<Tensor> {
        let index = Tensor::f_arange_start(from, from + count, (Kind::Int64, device))?;
        Ok(index.f_floor_divide_scalar(ROW)?.f_remainder(self.len().max(1))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes() -> Classes {
        Classes { names: ["cat", "1", "dog"].map(String::from).into(), shares: vec![2, 0, 6] }
    }

    fn numbers(t: Tensor) -> Vec<i64> {
        t.try_into().unwrap()
    }

    #[test]
    fn a_class_is_found_by_its_name_first() {
        assert_eq!(["cat", " dog", "1", "0", "2"].map(|c| classes().number("--class", c).unwrap()), [0, 2, 1, 0, 2]);
        let e = classes().number("--class", "cow").unwrap_err().to_string();
        assert_eq!(e, "--class cow: no such class; there are cat, 1, dog (or 0 to 2)");
        assert!(classes().number("--class", "3").is_err());
    }

    #[test]
    fn classes_are_drawn_by_their_shares() {
        let uniform = Tensor::from_slice(&[0.0f32, 0.24, 0.25, 0.9999]);
        assert_eq!(numbers(classes().drawn(&uniform).unwrap()), [0, 0, 2, 2]);
        assert_eq!(classes(), Classes::counted(classes().names, &[0, 2, 2, 2, 0, 2, 2, 2]));
        assert_eq!(classes().balanced().shares, [1, 0, 1], "a class without images is not drawn");
        let equal = Classes::equal(classes().names);
        assert_eq!(numbers(equal.drawn(&Tensor::from_slice(&[0.3f32, 0.34, 0.67])).unwrap()), [0, 1, 2]);
    }

    #[test]
    fn each_class_has_a_row_of_eight_in_turn() {
        let all = numbers(classes().in_rows(0, 30, Device::Cpu).unwrap());
        assert_eq!((&all[..9], &all[23..25]), (&[0, 0, 0, 0, 0, 0, 0, 0, 1][..], &[2, 0][..]));
        assert_eq!(numbers(classes().in_rows(23, 2, Device::Cpu).unwrap()), [2, 0]);
    }
}
