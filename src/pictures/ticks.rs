//! Tick positions of an axis, and numbers formatted for charts.

use indicatif::HumanCount;

/// About `wanted` tick positions from `low` to `high`: multiples of 1, 2 or 5 times a power of ten.
pub(super) fn ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let rough = (high - low) / wanted as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0].map(|f| f * power).into_iter().find(|s| *s >= rough * 0.999).unwrap_or(10.0 * power);
    let (first, last) = ((low / step).ceil(), (high / step).floor());
    if !(step > 0.0 && last - first <= 100.0) {
        return Vec::new();
    }
    (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect()
}

/// Tick labels, all in one unit and with the same number of decimals: 12k, 0.25, 1,500.
pub(super) fn tick_texts(ticks: &[f64]) -> Vec<String> {
    let size = ticks.iter().fold(0.0, |m: f64, t| m.max(t.abs()));
    let gap = if let [a, b, ..] = ticks { b - a } else { size };
    let zero_or = |t: &f64, text: String| if t.abs() < gap / 2.0 { "0".to_owned() } else { text };
    if size >= 1e15 || (size > 0.0 && size < 1e-4) {
        return ticks.iter().map(|t| zero_or(t, scientific(*t))).collect();
    }
    let (unit, suffix) = match size {
        s if s >= 1e12 => (1e12, "T"),
        s if s >= 1e9 => (1e9, "G"),
        s if s >= 1e6 => (1e6, "M"),
        s if s >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let exact = |decimals: i32| {
        let scale = 10f64.powi(decimals) / unit;
        ticks.iter().all(|t| (t * scale - (t * scale).round()).abs() <= gap * scale * 0.01)
    };
    let decimals = (0..12).find(|d| exact(*d)).unwrap_or(12) as usize;
    ticks.iter().map(|t| zero_or(t, format!("{}{suffix}", grouped(t / unit, decimals)))).collect()
}

/// A number with `decimals` decimals, commas between thousands and U+2212 as the minus sign. Larger ones than 2^64 print as 2^64.
pub(super) fn grouped(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let sign = if value < 0.0 && text.contains(|c| ('1'..='9').contains(&c)) { "−" } else { "" };
    format!("{sign}{}{fraction}", HumanCount(whole.parse().unwrap_or(u64::MAX)))
}

/// A number as 1.50e−7.
pub(super) fn scientific(value: f64) -> String {
    format!("{value:.2e}").replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_named_in_one_unit() {
        let names = |low, high| tick_texts(&ticks(low, high, 5)).join(" ");
        assert_eq!(names(0.0, 1.0), "0 0.2 0.4 0.6 0.8 1.0");
        assert_eq!(names(0.0, 4690.0), "0 1,000 2,000 3,000 4,000");
        assert_eq!(names(0.0, 12_500.0), "0 5k 10k");
        assert_eq!(names(-0.02, 0.05), "−0.02 0 0.02 0.04");
        assert_eq!(names(0.9e6, 1.1e6), "0.90M 0.95M 1.00M 1.05M 1.10M");
        assert_eq!(names(-3.0, 4.0), "−2 0 2 4");
        assert_eq!(names(0.0, 3e-7), "0 1.00e−7 2.00e−7 3.00e−7");
        assert_eq!(tick_texts(&[]), Vec::<String>::new());
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(1234567.891, 2), "1,234,567.89");
        assert_eq!(grouped(-999.5, 1), "−999.5");
        assert_eq!(grouped(-0.001, 1), "0.0");
    }
}
