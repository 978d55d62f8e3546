//! From the coefficients of a JPEG to pixels: the inverse transform, upsampling, colours.

use super::{Colours, Component, Head, Pixels, largest};

/// Transforms a block to samples, `size` across and down, in rows `stride` apart; `last` is the last coefficient in zigzag order
/// that may be other than 0.
#[inline(always)]
pub fn transform(
    block: &[i16; 64],
    quantiser: &[u16; 64],
    last: usize,
    size: (usize, usize),
    out: &mut [u8],
    stride: usize,
) {
    if last == 0 || size == (1, 1) {
        let value = i32::from(block[0]).wrapping_mul(quantiser[0].into());
        let level = (value.wrapping_add(4) >> 3).saturating_add(128).clamp(0, 255) as u8;
        for row in out.chunks_mut(stride).take(size.1) {
            row[..size.0].fill(level);
        }
        return;
    }
    match size {
        (8, 8) => full(block, quantiser, out, stride),
        // With its size known to the compiler it is several times as fast.
        (2, 2) => small(block, quantiser, (2, 2), out, stride),
        (4, 4) => small(block, quantiser, (4, 4), out, stride),
        _ => small(block, quantiser, size, out, stride),
    }
}

/// cos((2x + 1)uπ/2N)/2, and that over √2 for u = 0, at [u][x]: the inverse transform of the lowest N of eight coefficients.
const fn basis(n: usize) -> [[f32; 8]; 8] {
    // cos(iπ/16), of which all cosines for N = 1, 2, 4 and 8 are.
    const COS: [f32; 9] =
        [1.0, 0.980_785_25, 0.923_879_5, 0.831_469_6, 0.707_106_77, 0.555_570_2, 0.382_683_43, 0.195_090_32, 0.0];
    let mut all = [[0.0; 8]; 8];
    let mut x = 0;
    while x < n {
        let mut u = 0;
        while u < n {
            let angle = (2 * x + 1) * u * (8 / n) % 32;
            let angle = if angle > 16 { 32 - angle } else { angle };
            let cos = if angle > 8 { -COS[16 - angle] } else { COS[angle] };
            all[u][x] = cos / 2.0 * if u == 0 { COS[4] } else { 1.0 };
            u += 1;
        }
        x += 1;
    }
    all
}

/// The basis of 1, 2, 4 and 8 samples.
static BASES: [[[f32; 8]; 8]; 4] = [basis(1), basis(2), basis(4), basis(8)];

/// The transform of the lowest coefficients to as many samples.
#[inline(always)]
fn small(block: &[i16; 64], quantiser: &[u16; 64], (nx, ny): (usize, usize), out: &mut [u8], stride: usize) {
    let (across, down) = (&BASES[nx.trailing_zeros() as usize], &BASES[ny.trailing_zeros() as usize]);
    let mut columns = [[0f32; 8]; 8]; // [y][u]
    for v in 0..ny {
        let mut values = [0f32; 8];
        for u in 0..nx {
            values[u] = f32::from(block[8 * v + u]) * f32::from(quantiser[8 * v + u]);
        }
        for y in 0..ny {
            for u in 0..nx {
                columns[y][u] += down[v][y] * values[u];
            }
        }
    }
    for (row, out) in columns[..ny].iter().zip(out.chunks_mut(stride)) {
        let mut sums = [128.5f32; 8];
        for u in 0..nx {
            for x in 0..nx {
                sums[x] += row[u] * across[u][x];
            }
        }
        for (sum, out) in sums.iter().zip(&mut out[..nx]) {
            *out = *sum as u8; // which saturates
        }
    }
}

/// The accurate integer transform of the Independent JPEG Group (Loeffler, Ligtenberg and Moschytz 1989), whose results other
/// decoders share bit for bit.
#[inline(always)]
fn full(block: &[i16; 64], quantiser: &[u16; 64], out: &mut [u8], stride: usize) {
    let mut values = [[0i32; 8]; 8];
    for ((to, from), quantiser) in values.iter_mut().zip(block.as_chunks().0).zip(quantiser.as_chunks().0) {
        let (from, quantiser): (&[i16; 8], &[u16; 8]) = (from, quantiser);
        for i in 0..8 {
            to[i] = i32::from(from[i]).wrapping_mul(quantiser[i].into());
        }
    }
    pass::<11>(&mut values);
    let mut turned = [[0; 8]; 8];
    for (x, row) in turned.iter_mut().enumerate() {
        for (y, to) in row.iter_mut().enumerate() {
            *to = values[y][x];
        }
    }
    pass::<18>(&mut turned);
    for (y, out) in out.chunks_mut(stride).take(8).enumerate() {
        for (x, out) in out[..8].iter_mut().enumerate() {
            *out = turned[x][y].saturating_add(128).clamp(0, 255) as u8;
        }
    }
}

/// The transform of each column; the constants are cosines times 2^13, and SHIFT bits are rounded off.
#[expect(clippy::needless_range_loop, reason = "the compiler makes vectors of a loop over indices")]
#[inline(always)]
fn pass<const SHIFT: u32>(rows: &mut [[i32; 8]; 8]) {
    let times = |a: i32, b: i32| a.wrapping_mul(b);
    let sum = |a: i32, b: i32| a.wrapping_add(b);
    let less = |a: i32, b: i32| a.wrapping_sub(b);
    for i in 0..8 {
        let (a0, a1, a2, a3) = (rows[0][i], rows[1][i], rows[2][i], rows[3][i]);
        let (a4, a5, a6, a7) = (rows[4][i], rows[5][i], rows[6][i], rows[7][i]);
        // Even part.
        let z1 = times(sum(a2, a6), 4433);
        let (t2, t3) = (sum(z1, times(a6, -15137)), sum(z1, times(a2, 6270)));
        let half = 1 << (SHIFT - 1);
        let (t0, t1) = (sum(times(sum(a0, a4), 1 << 13), half), sum(times(less(a0, a4), 1 << 13), half));
        let (e0, e1, e2, e3) = (sum(t0, t3), sum(t1, t2), less(t1, t2), less(t0, t3));
        // Odd part.
        let (z1, z2, z3, z4) = (sum(a7, a1), sum(a5, a3), sum(a7, a3), sum(a5, a1));
        let z5 = times(sum(z3, z4), 9633);
        let (z1, z2) = (times(z1, -7373), times(z2, -20995));
        let (z3, z4) = (sum(times(z3, -16069), z5), sum(times(z4, -3196), z5));
        let o0 = sum(times(a1, 12299), sum(z1, z4));
        let o1 = sum(times(a3, 25172), sum(z2, z3));
        let o2 = sum(times(a5, 16819), sum(z2, z4));
        let o3 = sum(times(a7, 2446), sum(z1, z3));
        rows[0][i] = sum(e0, o0) >> SHIFT;
        rows[1][i] = sum(e1, o1) >> SHIFT;
        rows[2][i] = sum(e2, o2) >> SHIFT;
        rows[3][i] = sum(e3, o3) >> SHIFT;
        rows[4][i] = less(e3, o3) >> SHIFT;
        rows[5][i] = less(e2, o2) >> SHIFT;
        rows[6][i] = less(e1, o1) >> SHIFT;
        rows[7][i] = less(e0, o0) >> SHIFT;
    }
}

for_this_processor! {
    /// The pixels of all components.
    pub fn assemble(head: &mut Head, side: usize) -> Pixels {
        let (width, height) = ((head.width * side).div_ceil(8), (head.height * side).div_ceil(8));
        let ycc = is_ycc(head);
        let factors = largest(&head.components);
        let channels = head.components.len();
        let mut data = vec![0; width * height * channels];
        let mut rows = vec![Vec::new(); channels];
        for (y, out) in data.chunks_exact_mut(width * channels).enumerate() {
            for (c, row) in head.components.iter().zip(&mut rows) {
                upsampled(c, (head.width, head.height), factors, side, y, row);
            }
            match &rows[..] {
                [grey] => out.copy_from_slice(&grey[..width]),
                [a, b, c] => {
                    for (((out, a), b), c) in out.as_chunks_mut().0.iter_mut().zip(a).zip(b).zip(c) {
                        *out = if ycc { rgb(*a, *b, *c) } else { [*a, *b, *c] };
                    }
                }
                [a, b, c, d] => {
                    for ((((out, a), b), c), d) in out.as_chunks_mut().0.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                        let [r, g, b] = if ycc { rgb(*a, *b, *c) } else { [*a, *b, *c] };
                        // YCCK holds the complements of the inks.
                        *out = if ycc { [255 - r, 255 - g, 255 - b, *d] } else { [r, g, b, *d] };
                    }
                }
                _ => {}
            }
        }
        for c in &mut head.components {
            (c.samples, c.coefficients) = (Vec::new(), Vec::new());
        }
        let colours = [Colours::Grey, Colours::Rgb, Colours::Cmyk][channels / 2];
        Pixels { width, height, colours, data }
    }
}

/// Whether the components are luma and chroma, as libjpeg decides it.
fn is_ycc(head: &Head) -> bool {
    let ids: Vec<u8> = head.components.iter().map(|c| c.id).collect();
    match (ids.len(), head.adobe) {
        (3, _) if head.jfif => true,
        (3, Some(transform)) => transform != 0,
        (3, None) => ids != *b"RGB",
        (4, transform) => transform == Some(2),
        _ => false,
    }
}

/// YCbCr of the full range to RGB (JFIF), in libjpeg's fixed-point arithmetic.
#[inline(always)]
fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let r = y + ((91881 * cr + 32768) >> 16);
    let g = y + ((-22554 * cb - 46802 * cr + 32768) >> 16);
    let b = y + ((116_130 * cb + 32768) >> 16);
    [r, g, b].map(|v| v.clamp(0, 255) as u8)
}

/// Row `y` of the picture from a component's samples.
///
/// Twice as many samples are interpolated by a triangle filter, weights 3/4 and 1/4; other numbers repeat theirs (libjpeg's
/// "fancy" upsampling).
fn upsampled(
    c: &Component,
    size: (usize, usize),
    (h_max, v_max): (usize, usize),
    side: usize,
    y: usize,
    out: &mut Vec<u8>,
) {
    // Its samples that belong to the picture.
    let width = (size.0 * c.h * c.side.0).div_ceil(8 * h_max);
    let height = (size.1 * c.v * c.side.1).div_ceil(8 * v_max);
    let (across, down) = (h_max * side, v_max * side);
    let (own_across, own_down) = (c.h * c.side.0, c.v * c.side.1);
    let row = |row: usize| &c.samples[row.min(height - 1) * c.stride * c.side.0..][..width];
    let smooth = side > 1;
    let twice = |all: usize, own: usize| smooth && all == 2 * own;
    out.clear();
    if own_across == across && own_down == down {
        out.extend_from_slice(row(y));
    } else if twice(across, own_across) && own_down == down && width > 2 {
        double(row(y).iter().map(|v| i32::from(*v)), (1, 2, 2), out);
    } else if twice(down, own_down) && (own_across == across || (twice(across, own_across) && width > 2)) {
        let near = row(y / 2);
        let far = row(if y.is_multiple_of(2) { (y / 2).saturating_sub(1) } else { y / 2 + 1 });
        let sums = near.iter().zip(far).map(|(n, f)| 3 * i32::from(*n) + i32::from(*f));
        if own_across == across {
            out.extend(sums.map(|s| ((s + 1 + (y % 2) as i32) >> 2) as u8));
        } else {
            double(sums, (8, 7, 4), out);
        }
    } else {
        // Sampling factors such as 3 and 2 have no whole ratio: then the sample that lies nearest.
        let near = row(y * own_down / down);
        let full = (size.0 * side).div_ceil(8);
        out.extend((0..full).map(|x| near[(x * own_across / across).min(width - 1)]));
    }
}

/// Twice as many values by the triangle filter: `before` and `after` are what is added before rounding down by `shift` bits.
fn double(values: impl Iterator<Item = i32>, (before, after, shift): (i32, i32, u32), out: &mut Vec<u8>) {
    let mut last = None;
    let mut values = values.peekable();
    while let Some(value) = values.next() {
        let next = values.peek().copied();
        let left = last.unwrap_or(value);
        let right = next.unwrap_or(value);
        out.push(((3 * value + left + before) >> shift) as u8);
        out.push(((3 * value + right + after) >> shift) as u8);
        last = Some(value);
    }
}
