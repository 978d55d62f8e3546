//! JPEG (ITU-T T.81): baseline, extended and progressive Huffman pictures of 8 bits.
//!
//! A decoder of our own, because no maintained one in Rust does all of this: it reports data that are cut or damaged; it takes
//! components in separate scans; it decodes at 1/2, 1/4 or 1/8 of the size and then skips the codes of coefficients that this
//! does not need, several at a time. At full size the pixels are those of libjpeg-turbo (slow integer transform, triangle
//! upsampling), bit for bit.

mod huffman;
mod scan;
mod transform;

use std::io::{BufRead, Seek};

use anyhow::{Result, bail, ensure};

use super::{Colours, Pixels, metadata};
use huffman::Table;
use image::metadata::Orientation;

/// Scans of a progressive picture; encoders write about ten, and each takes time over all blocks.
const MOST_SCANS: usize = 100;

/// A colour component of the frame.
#[derive(Clone, Default)]
struct Component {
    id: u8,
    /// Sampling factors.
    h: usize,
    v: usize,
    /// Number of its quantisation table.
    quantiser: usize,
    /// Blocks that hold pixels.
    blocks: (usize, usize),
    /// Blocks in a row of the buffers, padded to whole MCUs; as many rows as the MCUs have.
    stride: usize,
    rows: usize,
    /// Samples across and down a decoded block: 1, 2, 4 or 8.
    side: (usize, usize),
    /// The last coefficient in zigzag order that these samples are made of.
    wanted: usize,
    /// Samples [rows*side.1, stride*side.0].
    samples: Vec<u8>,
    /// Quantised coefficients [rows, stride, 64] of a progressive picture, in the order of a block's rows.
    coefficients: Vec<i16>,
    /// For each coefficient in zigzag order the lowest bit that was sent; none yet: 255.
    sent: Vec<u8>,
}

/// What comes before the pixels.
#[derive(Default)]
pub struct Head {
    pub width: usize,
    pub height: usize,
    pub orientation: Option<Orientation>,
    progressive: bool,
    components: Vec<Component>,
    quantisers: [Option<[u16; 64]>; 4],
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    restart: usize,
    jfif: bool,
    /// The colour transform of the Adobe marker.
    adobe: Option<u8>,
    /// The parts of the colour profile by number, with their count.
    profile: Vec<(u8, u8, Vec<u8>)>,
}

fn cut_off<T>() -> Result<T> {
    bail!("it is cut off")
}

fn damaged(what: &str) -> anyhow::Error {
    anyhow::anyhow!("its {what} is damaged")
}

/// Coefficients from zigzag order to the order of a block's rows.
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;

/// Whether a marker stands alone, without a length.
fn alone(marker: u8) -> bool {
    matches!(marker, 0x01 | 0xd0..=0xd9)
}

/// The head of a file, as far as the frame.
///
/// # Errors
/// Why it cannot be read.
pub fn head(mut file: impl BufRead + Seek) -> Result<Head> {
    let mut head = Head::default();
    let mut byte = || -> Result<u8> {
        let mut one = [0];
        if file.read_exact(&mut one).is_err() {
            return cut_off();
        }
        Ok(one[0])
    };
    loop {
        while byte()? != 0xff {}
        let mut marker = 0xff;
        while marker == 0xff {
            marker = byte()?;
        }
        if marker == 0 || alone(marker) {
            ensure!(marker != EOI, "it holds no picture");
            continue;
        }
        let length = usize::from(byte()?) << 8 | usize::from(byte()?);
        ensure!(length >= 2, damaged("header"));
        let mut data = vec![0; length - 2];
        for to in &mut data {
            *to = byte()?;
        }
        head.segment(marker, &data)?;
        if !head.components.is_empty() {
            return Ok(head);
        }
    }
}

/// The next marker of `bytes` from `at` on, its data, and where it ends. Other bytes before it are skipped, as all decoders do.
fn next_marker(bytes: &[u8], mut at: usize) -> Result<(u8, &[u8], usize)> {
    loop {
        match bytes.get(at..at + 2) {
            None => return cut_off(),
            Some([0xff, marker]) if !matches!(marker, 0 | 0xff) => {
                let (marker, start) = (*marker, at + 4);
                if alone(marker) {
                    return Ok((marker, &[], at + 2));
                }
                let Some(&[high, low]) = bytes.get(at + 2..start) else { return cut_off() };
                let length = usize::from(high) << 8 | usize::from(low);
                ensure!(length >= 2, damaged("header"));
                let Some(data) = bytes.get(start..start + length - 2) else { return cut_off() };
                return Ok((marker, data, start + length - 2));
            }
            Some(_) => at += 1,
        }
    }
}

impl Head {
    /// Whether it is grey.
    pub fn grey(&self) -> bool {
        self.components.len() == 1
    }

    /// The colour profile, if it is whole.
    pub fn profile(&self) -> Option<Vec<u8>> {
        let mut parts: Vec<_> = self.profile.iter().collect();
        parts.sort_by_key(|part| part.0);
        let whole = !parts.is_empty()
            && parts
                .iter()
                .enumerate()
                .all(|(i, part)| usize::from(part.0) == i + 1 && usize::from(part.1) == parts.len());
        whole.then(|| parts.iter().flat_map(|part| part.2.iter().copied()).collect())
    }

    /// Reads a segment other than a scan.
    fn segment(&mut self, marker: u8, data: &[u8]) -> Result<()> {
        match marker {
            0xc0..=0xc2 => self.frame(marker, data)?,
            0xc3 => bail!("it is a lossless JPEG, which is not supported: convert it, for example to PNG"),
            0xc5..=0xc7 => bail!("it is a hierarchical JPEG, which is not supported: convert it, for example to PNG"),
            0xc9..=0xcb | 0xcd..=0xcf => {
                bail!("it is a JPEG with arithmetic coding, which is not supported: convert it (jpegtran -optimize)")
            }
            0xc4 => self.huffman(data)?,
            0xdb => self.quantiser(data)?,
            0xdd => match data {
                &[high, low] => self.restart = usize::from(high) << 8 | usize::from(low),
                _ => return Err(damaged("restart interval")),
            },
            0xe0 => self.jfif |= data.starts_with(b"JFIF\0"),
            0xe1 if self.orientation.is_none() => {
                self.orientation = data.strip_prefix(b"Exif\0").and_then(|d| metadata::of_exif(d.get(1..)?));
            }
            0xe2 => {
                if let Some([number, count, part @ ..]) = data.strip_prefix(b"ICC_PROFILE\0") {
                    self.profile.push((*number, *count, part.to_vec()));
                }
            }
            0xee if data.starts_with(b"Adobe") => self.adobe = data.get(11).copied(),
            _ => {}
        }
        Ok(())
    }

    fn frame(&mut self, marker: u8, data: &[u8]) -> Result<()> {
        ensure!(self.components.is_empty(), "it has two frames");
        let [precision, h1, h0, w1, w0, count, rest @ ..] = data else { return Err(damaged("header")) };
        ensure!(
            *precision == 8,
            "it is a JPEG of {precision} bits, and only 8 are supported: convert it, for example to PNG"
        );
        let number = |high: &u8, low: &u8| usize::from(*high) << 8 | usize::from(*low);
        (self.height, self.width) = (number(h1, h0), number(w1, w0));
        ensure!(self.height > 0 && self.width > 0, "it is {}x{} pixels large", self.height, self.width);
        ensure!(matches!(count, 1 | 3 | 4), "it has {count} colour components, wanted 1, 3 or 4");
        ensure!(rest.len() == 3 * usize::from(*count), damaged("header"));
        self.progressive = marker == 0xc2;
        let mut components = Vec::new();
        for part in rest.chunks_exact(3) {
            let (h, v) = (usize::from(part[1] >> 4), usize::from(part[1] & 15));
            ensure!((1..=4).contains(&h) && (1..=4).contains(&v) && part[2] < 4, damaged("header"));
            // Sampling factors mean nothing for a single component.
            let (h, v) = if *count == 1 { (1, 1) } else { (h, v) };
            components.push(Component { id: part[0], h, v, quantiser: part[2].into(), ..Component::default() });
        }
        let (h_max, v_max) = largest(&components);
        for c in &mut components {
            let blocks = |size: usize, factor: usize, most: usize| (size * factor).div_ceil(most).div_ceil(8);
            c.blocks = (blocks(self.width, c.h, h_max), blocks(self.height, c.v, v_max));
            c.stride = self.width.div_ceil(8 * h_max) * c.h;
            c.rows = self.height.div_ceil(8 * v_max) * c.v;
        }
        self.components = components;
        Ok(())
    }

    fn huffman(&mut self, mut data: &[u8]) -> Result<()> {
        while let [class, rest @ ..] = data {
            let (Some(counts), true) = (rest.get(..16), class & 0xef < 4) else { return Err(damaged("Huffman table")) };
            let total: usize = counts.iter().map(|n| usize::from(*n)).sum();
            let Some(symbols) = rest.get(16..16 + total) else { return Err(damaged("Huffman table")) };
            let dc = class & 0x10 == 0;
            let table = Table::new(counts, symbols, dc).ok_or_else(|| damaged("Huffman table"))?;
            let tables = if dc { &mut self.dc } else { &mut self.ac };
            tables[usize::from(class & 3)] = Some(table);
            data = &rest[16 + total..];
        }
        Ok(())
    }

    fn quantiser(&mut self, mut data: &[u8]) -> Result<()> {
        while let [class, rest @ ..] = data {
            let size = if class & 0xf0 == 0 { 1 } else { 2 };
            let (Some(values), true) = (rest.get(..64 * size), class & 0xef < 4) else {
                return Err(damaged("quantisation table"));
            };
            let mut table = [0; 64];
            for (value, to) in values.chunks_exact(size).zip(ZIGZAG) {
                table[usize::from(to)] = value.iter().fold(0, |all, byte| all << 8 | u16::from(*byte));
            }
            self.quantisers[usize::from(class & 3)] = Some(table);
            data = &rest[64 * size..];
        }
        Ok(())
    }

    /// Bytes of its pixels.
    pub fn bytes(&self) -> u64 {
        (self.width * self.height * self.components.len()) as u64
    }

    /// Bytes that [`decode`] holds for this picture at `side` samples for each block of 8, beside the file.
    pub fn memory(&self, side: usize) -> u64 {
        let blocks: usize = self.components.iter().map(|c| c.stride * c.rows).sum();
        let coefficients = if self.progressive { 128 * blocks } else { 0 };
        let pixels = (self.width * side).div_ceil(8) * (self.height * side).div_ceil(8) * self.components.len();
        (coefficients + blocks * (16 * side * side).min(64) + 2 * pixels) as u64
    }
}

fn largest(components: &[Component]) -> (usize, usize) {
    components.iter().fold((1, 1), |(h, v), c| (h.max(c.h), v.max(c.v)))
}

/// Decodes a picture with `side` (1, 2, 4 or 8) samples for each block of 8: a width of ceil(W·side/8), and likewise the height.
/// Also gives the head with all that was found in it.
///
/// What follows the picture in the file (a video, another picture, padding) is not looked at.
///
/// # Errors
/// Why it cannot be read: cut off, damaged, or of a kind that is not supported.
pub fn decode(bytes: &[u8], side: usize) -> Result<(Pixels, Head)> {
    let (mut head, mut at, mut scans) = (Head::default(), 2, 0);
    loop {
        let (marker, data, end) = match next_marker(bytes, at) {
            // Without its end marker, a picture of which all was sent is one.
            Err(_) if complete(&head) => break,
            other => other?,
        };
        at = end;
        match marker {
            EOI => break,
            SOS => {
                ensure!(!head.components.is_empty(), damaged("header"));
                if scans == 0 {
                    start(&mut head, side);
                }
                scans += 1;
                ensure!(scans <= MOST_SCANS, "it has more than {MOST_SCANS} scans");
                at = scan::decode(&mut head, data, bytes, end)?;
                if !head.progressive && complete(&head) {
                    break;
                }
            }
            0xdc => bail!("its height stands after its pixels, which is not supported: convert it, for example to PNG"),
            marker if alone(marker) => {}
            marker => head.segment(marker, data)?,
        }
    }
    ensure!(scans > 0, "it holds no picture");
    ensure!(head.components.iter().all(|c| c.sent[0] != 255), "it is cut off: a colour component is missing");
    if head.progressive {
        scan::transform_all(&mut head)?;
    }
    let pixels = transform::assemble(&mut head, side);
    Ok((pixels, head))
}

/// Whether every coefficient of every component was sent to its last bit.
fn complete(head: &Head) -> bool {
    let all = |c: &Component| c.sent.len() == 64 && c.sent.iter().all(|low| *low == 0);
    !head.components.is_empty() && head.components.iter().all(all)
}

/// Makes the buffers.
fn start(head: &mut Head, side: usize) {
    let (h_max, v_max) = largest(&head.components);
    for c in &mut head.components {
        // A subsampled component is decoded larger where this saves its upsampling.
        let larger = |factor: usize, most: usize| {
            let mut larger = side;
            while larger < 8 && (most * side).is_multiple_of(2 * factor * larger) {
                larger *= 2;
            }
            larger
        };
        c.side = (larger(c.h, h_max), larger(c.v, v_max));
        let inside = |at: &u8| usize::from(*at) % 8 < c.side.0 && usize::from(*at) / 8 < c.side.1;
        c.wanted = ZIGZAG.iter().rposition(inside).unwrap_or(63);
        c.samples = vec![0; c.stride * c.rows * c.side.0 * c.side.1];
        c.sent = vec![255; 64];
        if head.progressive {
            c.coefficients = vec![0; c.stride * c.rows * 64];
        }
    }
}
