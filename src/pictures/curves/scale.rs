//! The arithmetic of charts: round tick values and their names, the outlines of lines.

/// A position: x to the right, y downwards; or a (step, value) pair.
pub(super) type Pt = (f64, f64);

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

/// What a round pen of the given radius covers when it is drawn along a line whose x never falls, as polygons of
/// whole x: above and below, the farthest edges per column. The line is cut at the heights `top` and `bottom`.
/// Unlike a stroke, this paints nothing twice, has no spikes at sharp turns, and costs what the chart is wide
/// instead of what the run is long.
pub(super) fn outlines(line: &[Pt], radius: f64, (top, bottom): Pt) -> Vec<Vec<Pt>> {
    let reach = radius.round().max(0.0);
    let (Some(first), Some(last)) = (line.first(), line.last()) else { return Vec::new() };
    let start = first.0.floor() - reach;
    let columns = (last.0.floor() + reach - start) as usize + 1;
    let mut spans = vec![(f64::INFINITY, f64::NEG_INFINITY); columns];
    for pair in line.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        let at = |x: f64| a.1 + (b.1 - a.1) * ((x - a.0) / (b.0 - a.0));
        for column in (a.0.floor() - start) as usize..=(b.0.floor() - start) as usize {
            let x = start + column as f64;
            let from = if x > a.0 { at(x) } else { a.1 };
            let to = if x + 1.0 < b.0 { at(x + 1.0) } else { b.1 };
            let (low, high) = (from.min(to), from.max(to));
            if let (true, Some(span)) = (low <= bottom && high >= top, spans.get_mut(column)) {
                *span = (span.0.min(low.max(top)), span.1.max(high.min(bottom)));
            }
        }
    }
    let covered = |column: usize| {
        let near = column.saturating_sub(reach as usize)..(column + reach as usize + 1).min(columns);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for other in near {
            let height = (radius * radius - (column.abs_diff(other) as f64).powi(2)).max(0.0).sqrt();
            (low, high) = (low.min(spans[other].0 - height), high.max(spans[other].1 + height));
        }
        (start + column as f64, low.max(top), high.min(bottom))
    };
    let covered: Vec<_> = (0..columns).map(covered).collect();
    let pieces = covered.chunk_by(|a, b| (a.1 <= a.2) == (b.1 <= b.2)).filter(|piece| piece[0].1 <= piece[0].2);
    let outline = |piece: &[(f64, f64, f64)]| {
        let mut above = straightened(piece.iter().map(|c| (c.0, c.1)));
        let below = straightened(piece.iter().map(|c| (c.0, c.2)));
        above.extend(below.into_iter().rev());
        above
    };
    pieces.map(outline).collect()
}

/// The same chain of points, rising in x, without those that a straight line passes within half a unit.
fn straightened(points: impl Iterator<Item = Pt>) -> Vec<Pt> {
    let (mut kept, mut last): (Vec<Pt>, Option<Pt>) = (Vec::new(), None);
    // The slopes at which a line from the last kept point passes all that follow.
    let mut slopes = (f64::NEG_INFINITY, f64::INFINITY);
    for (x, y) in points {
        let slope = |from: Pt, y: f64| (y - from.1) / (x - from.0);
        let fits = |from: &Pt| slope(*from, y) >= slopes.0 && slope(*from, y) <= slopes.1;
        if let Some(last) = last.filter(|_| !kept.last().is_some_and(fits)) {
            kept.push(last);
            slopes = (f64::NEG_INFINITY, f64::INFINITY);
        }
        if let Some(from) = kept.last() {
            slopes = (slopes.0.max(slope(*from, y - 0.5)), slopes.1.min(slope(*from, y + 0.5)));
        }
        last = Some((x, y));
    }
    kept.extend(last);
    kept
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

    /// The first and last x of each piece, and how far it reaches upwards and downwards.
    fn boxes(line: &[Pt], radius: f64, cut: Pt) -> Vec<[f64; 4]> {
        let pieces = outlines(line, radius, cut);
        let side =
            |piece: &[Pt], f: fn(f64, f64) -> f64, axis: fn(&Pt) -> f64| piece.iter().map(axis).reduce(f).unwrap();
        let bounds = |p: &Vec<Pt>| {
            [
                side(p, f64::min, |p| p.0),
                side(p, f64::max, |p| p.0),
                side(p, f64::min, |p| p.1),
                side(p, f64::max, |p| p.1),
            ]
        };
        pieces.iter().map(bounds).collect()
    }

    #[test]
    fn lines_are_cut_at_the_frame() {
        let line = [(0.0, 50.0), (100.0, 150.0), (200.0, 150.0), (300.0, -50.0), (400.0, 50.0)];
        let want = vec![[0.0, 50.0, 50.0, 100.0], [224.0, 275.0, 0.0, 100.0], [349.0, 400.0, 0.0, 50.0]];
        // A column belongs to a piece even if the line only touches it.
        assert_eq!(boxes(&line, 0.0, (0.0, 100.0)), want);
        for outside in [-0.5, 100.5] {
            assert!(outlines(&[(0.0, outside), (9.0, outside)], 1.0, (0.0, 100.0)).is_empty());
        }
        assert!(outlines(&[], 1.0, (0.0, 100.0)).is_empty());
        // The pen is round, and the frame cuts it too.
        let flat = outlines(&[(5.0, 2.0), (9.0, 2.0)], 3.0, (0.0, 100.0));
        assert_eq!(boxes(&[(5.0, 2.0), (9.0, 2.0)], 3.0, (0.0, 100.0)), [[2.0, 12.0, 0.0, 5.0]]);
        assert!(flat[0].contains(&(2.0, 2.0)) && !flat[0].contains(&(2.0, 5.0)), "{flat:?}");
    }

    #[test]
    fn outlines_keep_each_columns_extremes_and_drop_what_is_straight() {
        let wave = |i: usize| ((i as f64) / 1000.0, ((i * 7919) % 1009) as f64);
        let line: Vec<Pt> = (0..100_000).map(wave).collect();
        let pieces = outlines(&line, 0.0, (f64::NEG_INFINITY, f64::INFINITY));
        assert_eq!(pieces.len(), 1);
        assert!(pieces[0].len() <= 200, "{}", pieces[0].len());
        for x in 0..100 {
            // Joined to its neighbours, or the curve would have gaps.
            let near = line[(x * 1000usize).saturating_sub(1)..].iter().take(1002).map(|p| p.1);
            let (low, high) = near.fold((1e9, -1e9), |(a, b): Pt, v| (a.min(v), b.max(v)));
            for edge in [low, high] {
                let kept = pieces[0].windows(2).any(|e| {
                    let (a, b) = if e[0].0 < e[1].0 { (e[0], e[1]) } else { (e[1], e[0]) };
                    let t = (x as f64 - a.0) / (b.0 - a.0).max(1e-9);
                    (0.0..=1.0).contains(&t) && (a.1 + t * (b.1 - a.1) - edge).abs() < 4.0
                });
                assert!(kept, "column {x} reaches {edge}");
            }
        }
        let bend: Vec<Pt> = (0..=100).map(|i| (f64::from(i), f64::from(i.min(60)))).collect();
        assert_eq!(straightened(bend.into_iter()), [(0.0, 0.0), (60.0, 60.0), (100.0, 60.0)]);
    }
}
