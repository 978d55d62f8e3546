//! The arithmetic of charts: round tick values and their names, thinning out and clipping of lines.
//! Private to `plot`; imports only a type of its canvas, no other module of the crate (and no tch).

use super::canvas::Pt;

/// About `wanted` round values from `low` to `high`: multiples of 1, 2 or 5 times a power of ten.
pub(super) fn ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let rough = (high - low) / wanted as f64;
    let power = 10f64.powf(rough.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    let step = factors.iter().map(|f| f * power).find(|s| *s >= rough * 0.999);
    let step = step.unwrap_or(rough);
    let (first, last) = ((low / step).ceil(), (high / step).floor());
    if !(step > 0.0 && last - first <= 100.0) {
        return Vec::new();
    }
    (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect()
}

/// Names for tick values, all in one unit and with the decimals that tell them apart: 12k, 0.25, 1,500.
pub(super) fn tick_texts(ticks: &[f64]) -> Vec<String> {
    let size = ticks.iter().fold(0.0, |m: f64, t| m.max(t.abs()));
    let gap = match ticks {
        [a, b, ..] => b - a,
        _ => size,
    };
    if size >= 1e15 || (size > 0.0 && size < 1e-4) {
        let name = |t: &f64| {
            if t.abs() < gap / 2.0 { "0".into() } else { format!("{t:.2e}") }
        };
        return ticks.iter().map(|t| minus(name(t))).collect();
    }
    let (unit, suffix) = match size {
        s if s >= 1e12 => (1e12, "T"),
        s if s >= 1e9 => (1e9, "G"),
        s if s >= 1e6 => (1e6, "M"),
        s if s >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let exact = |d: usize| {
        let scale = 10f64.powi(d as i32) / unit;
        let off = |t: &f64| (t * scale - (t * scale).round()).abs() > gap * scale * 0.01;
        !ticks.iter().any(off)
    };
    let decimals = (0..12).find(|d| exact(*d)).unwrap_or(12);
    let name = |t: &f64| match t.abs() < gap / 2.0 {
        true => "0".to_string(),
        false => format!("{}{suffix}", grouped(t / unit, decimals)),
    };
    ticks.iter().map(name).collect()
}

/// A number with `decimals` places, commas between thousands and a real minus sign.
pub(super) fn grouped(value: f64, decimals: usize) -> String {
    let plain = format!("{:.decimals$}", value.abs());
    let whole = plain.find('.').unwrap_or(plain.len());
    let mut out = String::new();
    if value < 0.0 && plain.contains(|c: char| ('1'..='9').contains(&c)) {
        out.push('−');
    }
    for (i, c) in plain.chars().enumerate() {
        if i > 0 && i < whole && (whole - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    out
}

fn minus(text: String) -> String {
    text.replace('-', "−")
}

/// At most four points per pixel column (first, lowest, highest, last), in their order. The drawn line is
/// the same, and its cost depends on the width of the chart instead of the length of the run.
pub(super) fn thin_out(pixels: &[Pt]) -> Vec<Pt> {
    let mut out = Vec::new();
    for column in pixels.chunk_by(|a, b| a.0.floor() == b.0.floor()) {
        let by_y = |a: &&usize, b: &&usize| column[**a].1.total_cmp(&column[**b].1);
        let all: Vec<usize> = (0..column.len()).collect();
        let extremes = [all.iter().min_by(by_y), all.iter().max_by(by_y)];
        let mut keep: Vec<usize> = extremes.into_iter().flatten().copied().collect();
        keep.extend([0, column.len() - 1]);
        keep.sort_unstable();
        keep.dedup();
        out.extend(keep.into_iter().map(|i| column[i]));
    }
    out
}

/// The pieces of a line between two heights: it is cut where it crosses them.
pub(super) fn clip(line: &[Pt], top: f64, bottom: f64) -> Vec<Vec<Pt>> {
    let (mut pieces, mut piece): (Vec<Vec<Pt>>, Vec<Pt>) = (Vec::new(), Vec::new());
    for pair in line.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        let at = |y: f64| (y - a.1) / (b.1 - a.1);
        let (mut t0, mut t1) = (0.0, 1.0);
        if a.1 != b.1 {
            let (u, v) = (at(top), at(bottom));
            (t0, t1) = (u.min(v).max(0.0), u.max(v).min(1.0));
        } else if a.1 < top || a.1 > bottom {
            t1 = -1.0;
        }
        // Clamped against rounding: a long steep segment loses digits.
        let point = |t: f64| {
            let (x, y) = (a.0 + t * (b.0 - a.0), a.1 + t * (b.1 - a.1));
            (x, y.clamp(top, bottom))
        };
        if t0 > t1 {
            continue;
        }
        if piece.is_empty() {
            piece.push(point(t0));
        }
        piece.push(point(t1));
        if t1 < 1.0 {
            pieces.push(std::mem::take(&mut piece));
        }
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
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

    #[test]
    fn lines_are_cut_at_the_frame() {
        let line = [(0.0, 50.0), (1.0, 150.0), (2.0, 150.0), (3.0, -50.0), (4.0, 50.0)];
        let want =
            vec![vec![(0.0, 50.0), (0.5, 100.0)], vec![(2.25, 100.0), (2.75, 0.0)], vec![(3.5, 0.0), (4.0, 50.0)]];
        assert_eq!(clip(&line, 0.0, 100.0), want);
        assert!(clip(&[(0.0, -5.0), (9.0, -5.0)], 0.0, 100.0).is_empty());
        let flat = [(0.0, 5.0), (9.0, 5.0)];
        assert_eq!(clip(&flat, 0.0, 100.0), vec![flat.to_vec()]);
    }

    #[test]
    fn thinning_keeps_each_columns_extremes() {
        let wave = |i: usize| ((i as f64) / 1000.0, ((i * 7919) % 1009) as f64);
        let line: Vec<Pt> = (0..100_000).map(wave).collect();
        let thin = thin_out(&line);
        assert!(thin.len() <= 400, "{}", thin.len());
        for x in 0..100 {
            let span = |l: &[Pt]| {
                let y = l.iter().filter(|p| p.0.floor() == x as f64).map(|p| p.1);
                y.fold((1e9, -1e9), |(a, b): Pt, v| (a.min(v), b.max(v)))
            };
            assert_eq!(span(&thin), span(&line));
            // Without its ends a column would be joined to the next one by a wrong slope.
            assert!(thin.contains(&line[x * 1000]) && thin.contains(&line[x * 1000 + 999]));
        }
        assert!(thin.windows(2).all(|p| p[0].0 <= p[1].0));
    }
}
