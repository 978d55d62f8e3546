//! One array in NumPy's `.npy` format, read as images or as labels.
//!
//! The format (NumPy Enhancement Proposal 1, versions 1 to 3): a magic string, a header that is a Python dictionary, and the numbers.

use std::fmt::Display;
use std::io::{ErrorKind, Read};

use anyhow::{Context, Result, anyhow, ensure};
use half::f16;

use super::arrays::{Layout, sides};
use super::files::DataFile;
use super::idx::reserve;
use super::images::MOST_CLASSES;

/// The start of the format.
pub(super) const MAGIC: &[u8] = b"\x93NUMPY";
/// Bytes of a header: that of the widest structured type is far shorter.
const MOST_HEADER: usize = 1 << 20;
/// Numbers that are converted at a time.
const CHUNK: usize = 1 << 13;
/// How far floats may be outside of [0,1] by rounding.
const ROUNDING: f64 = 1e-5;

const AGAIN: &str = "the file is incomplete or damaged, so write it again with numpy.save";

/// An open array whose header is read.
pub(super) struct Array<'a> {
    name: String,
    reader: Box<dyn Read + 'a>,
    /// The type as NumPy writes it: `|u1`.
    pub descr: String,
    fortran: bool,
    /// Its sides.
    pub shape: Vec<usize>,
    /// Where the numbers start.
    start: usize,
    len: u64,
}

/// A type of numbers: bool, unsigned, signed or float; bytes; big-endian.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kind(u8, usize, bool);

impl<'a> Array<'a> {
    /// Opens an array and reads its header.
    ///
    /// # Errors
    /// When the file cannot be read or is no such array: names the file and the byte.
    pub fn open(file: &'a DataFile) -> Result<Self> {
        let name = file.display().to_string();
        let reader = file.stream().with_context(|| format!("{name} cannot be read"))?;
        let (descr, shape) = (String::new(), Vec::new());
        let mut array = Array { name, reader, descr, fortran: false, shape, start: 0, len: file.len };
        let head = array.take(8, 0)?;
        if !head.starts_with(MAGIC) {
            return Err(array.fault(
                0,
                format_args!("{:02x?}", &head[..head.len().min(6)]),
                "an array of numpy.save",
                AGAIN,
            ));
        }
        let wide = head.get(6).is_some_and(|major| *major > 1);
        let size = array.take(if wide { 4 } else { 2 }, 8)?;
        let start = 8 + size.len();
        let len = size.iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte));
        if len > MOST_HEADER {
            return Err(array.fault(
                8,
                format_args!("a header of {len} bytes"),
                format_args!("at most {MOST_HEADER}"),
                AGAIN,
            ));
        }
        let text = array.take(len, start)?;
        array.start = start + len;
        let text = String::from_utf8_lossy(&text).into_owned();
        let Some((descr, fortran, shape)) = parsed(&text) else {
            return Err(array.fault(
                start,
                "a header without descr, fortran_order and shape",
                "those of numpy.save",
                AGAIN,
            ));
        };
        (array.descr, array.fortran, array.shape) = (descr, fortran, shape);
        Ok(array)
    }

    /// For messages: `x_train (|u1, 60000x28x28)`.
    pub fn described(&self, key: &str) -> String {
        format!("{key} ({}, {})", self.descr, sides(&self.shape))
    }

    /// Exactly `len` bytes.
    fn take(&mut self, len: usize, at: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.reader.by_ref().take(len as u64).read_to_end(&mut bytes) {
            Err(e) if e.kind() != ErrorKind::UnexpectedEof => Err(self.fault(
                at + bytes.len(),
                format_args!("damaged data ({e})"),
                "data that can be read to its end",
                AGAIN,
            )),
            _ if bytes.len() < len => {
                Err(self.fault(at + bytes.len(), "the end of the data", format_args!("{} bytes", at + len), AGAIN))
            }
            _ => Ok(bytes),
        }
    }

    /// An error with array, offset, what was found, what was wanted, and what to do.
    fn fault(&self, at: usize, found: impl Display, wanted: impl Display, todo: &str) -> anyhow::Error {
        anyhow!("{}: found {found} at byte {at}, wanted {wanted}; {todo}", self.name)
    }

    /// The type of the numbers.
    fn kind(&self, todo: &str) -> Result<Kind> {
        Kind::of(&self.descr).ok_or_else(|| {
            let found = format_args!("numbers of type {:?}", self.descr);
            self.fault(self.start, found, "bool, integers or floats of at most 8 bytes", todo)
        })
    }

    /// How many numbers there are, after a check against the length of the file.
    fn count(&self, kind: Kind) -> Result<usize> {
        let count = self.shape.iter().try_fold(1usize, |a, b| a.checked_mul(*b));
        let end = count.and_then(|n| n.checked_mul(kind.1)?.checked_add(self.start));
        match (count, end) {
            (Some(count), Some(end)) if end as u64 == self.len => Ok(count),
            _ => {
                let (shape, descr) = (sides(&self.shape), &self.descr);
                let found = format_args!("shape {shape} of {descr}");
                let wanted = format_args!("one that fits the {} bytes of the file", self.len);
                Err(self.fault(self.start, found, wanted, AGAIN))
            }
        }
    }

    /// Calls `each` for every number with its place.
    fn for_each(&mut self, kind: Kind, count: usize, mut each: impl FnMut(usize, f64)) -> Result<()> {
        for from in (0..count).step_by(CHUNK) {
            let n = CHUNK.min(count - from);
            let mut bytes = self.take(n * kind.1, self.start + from * kind.1)?;
            if kind.2 {
                bytes.chunks_exact_mut(kind.1).for_each(<[u8]>::reverse);
            }
            kind.floats(&bytes, |i, value| each(from + i, value));
        }
        self.end(self.start + count * kind.1)
    }

    /// Checks that the data ends; the checksum of a zip is verified here.
    fn end(&mut self, at: usize) -> Result<()> {
        match self.reader.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.fault(at, "more bytes", "the end of the array", AGAIN)),
            Err(e) => Err(self.fault(at, format_args!("damaged data ({e})"), "its end", AGAIN)),
        }
    }

    /// The array as images, and a note on how its numbers were read.
    ///
    /// Bytes are taken as they are, wider integers must be 0 to 255, floats in [0,1] are multiplied by 255 and rounded. If no integer is
    /// above 1, 0 is black and 1 is white.
    ///
    /// # Errors
    /// When shape, type or numbers are others: says which were found and what to do.
    pub fn images(mut self) -> Result<([usize; 4], Vec<u8>, Option<String>)> {
        let kind = self.kind("save the images as uint8")?;
        let layout = Layout::of(&self.shape, self.fortran).map_err(|e| anyhow!("{}: found {e}", self.name))?;
        let count = self.count(kind)?;
        let mut data = Vec::new();
        reserve(&mut data, count).with_context(|| self.name.clone())?;
        let (mut low, mut high, mut odd) = (f64::INFINITY, f64::NEG_INFINITY, None);
        if kind == Kind(b'u', 1, false) {
            let mut left = count;
            while left > 0 {
                let n = left.min(CHUNK * 8);
                let chunk = self.take(n, self.start + data.len())?;
                high = chunk.iter().fold(high, |high, byte| high.max(f64::from(*byte)));
                data.extend_from_slice(&chunk);
                left -= n;
            }
            self.end(self.start + count)?;
        } else {
            let scale = if kind.0 == b'f' { 255.0 } else { 1.0 };
            self.for_each(kind, count, |i, value| {
                (low, high) = (low.min(value), high.max(value));
                if !value.is_finite() && odd.is_none() {
                    odd = Some((i, value));
                }
                // Saturates; what does is refused below.
                data.push((value * scale + 0.5) as u8);
            })?;
        }
        if let Some((i, value)) = odd {
            let at = self.start + i * kind.1;
            return Err(self.fault(at, value, "finite numbers in [0,1]", "replace it, for example by 0"));
        }
        let outside = |low_is: f64, high_is: f64| low < low_is || high > high_is;
        if kind.0 == b'f' && outside(-ROUNDING, 1.0 + ROUNDING) {
            let todo = match (low, high) {
                (0.0.., ..=255.0) => "divide by 255 first, or save bytes (uint8)",
                (-1.0..=0.0, ..=1.0) => "save (x + 1) / 2 instead",
                _ => "bring them into this range first",
            };
            return Err(self.fault(self.start, format_args!("floats from {low} to {high}"), "floats in [0,1]", todo));
        }
        if kind.0 != b'f' && outside(0.0, 255.0) {
            let todo =
                if high <= 65535.0 && low >= 0.0 { "divide 16-bit values by 257 and save uint8" } else { "save uint8" };
            return Err(self.fault(self.start, format_args!("integers from {low} to {high}"), "0 to 255", todo));
        }
        let binary = kind.0 != b'f' && high <= 1.0;
        if binary {
            data.iter_mut().for_each(|byte| *byte *= 255);
        }
        let note = (binary && kind.0 != b'b')
            .then(|| format!("{}: no value is above 1, so 1 is read as white (255)", self.name));
        Ok((layout.shape, layout.arrange(data)?, note))
    }

    /// The array as class numbers: N or N x 1 whole numbers, or N x K rows with one 1 and zeros. `Err` in the result is a note for rows
    /// that are none of these, as of images with several labels each.
    ///
    /// # Errors
    /// When it is damaged, or holds what is no class number.
    pub fn labels(mut self) -> Result<Result<Vec<u32>, String>> {
        let kind = self.kind("save the labels as integers")?;
        let count = self.count(kind)?;
        let columns = match self.shape[..] {
            [_] => 1,
            [_, k] if k > 0 => k,
            _ => {
                let found = format_args!("labels of shape {}", sides(&self.shape));
                return Err(self.fault(self.start, found, "N class numbers", "save one number for each image"));
            }
        };
        let mut numbers = Vec::new();
        let most = f64::from(MOST_CLASSES - 1);
        let mut odd = None;
        let big_enough = numbers.try_reserve_exact(count).is_ok();
        ensure!(big_enough, "{}: its {count} labels do not fit into memory", self.name);
        let fortran = self.fortran && columns > 1;
        self.for_each(kind, count, |i, value| {
            if value.fract() != 0.0 || !(0.0..=most).contains(&value) {
                odd = odd.or(Some((i, value)));
            }
            numbers.push(value as u32);
        })?;
        if let Some((i, value)) = odd.filter(|_| columns == 1) {
            let at = self.start + i * kind.1;
            return Err(self.fault(
                at,
                format_args!("label {value}"),
                format_args!("0 to {most}"),
                "number the classes from 0",
            ));
        }
        if columns == 1 {
            return Ok(Ok(numbers));
        }
        let rows = count / columns;
        let at = |row: usize, k: usize| if fortran { numbers[k * rows + row] } else { numbers[row * columns + k] };
        let one_hot = |row: usize| {
            let mut ones = (0..columns).filter(|k| at(row, *k) == 1);
            let (class, more) = (ones.next()?, ones.next());
            let zeros = (0..columns).filter(|k| at(row, *k) == 0).count();
            (more.is_none() && zeros == columns - 1).then_some(class as u32)
        };
        match (0..rows).map(one_hot).collect::<Option<Vec<_>>>().filter(|_| odd.is_none()) {
            Some(classes) => Ok(Ok(classes)),
            None => Ok(Err(format!(
                "{}: {columns} labels for each image name no class, so the images are read without labels",
                self.name
            ))),
        }
    }
}

impl Kind {
    fn of(descr: &str) -> Option<Self> {
        let (order, rest) = descr.split_at_checked(1)?;
        let (kind, size) = (*rest.as_bytes().first()?, rest.get(1..)?);
        let size: usize = size.parse().ok()?;
        let known = matches!((kind, size), (b'b', 1) | (b'u' | b'i', 1 | 2 | 4 | 8) | (b'f', 2 | 4 | 8));
        let big = order == ">" && size > 1;
        (known && matches!(order, "<" | ">" | "|" | "=")).then_some(Kind(kind, size, big))
    }

    /// Calls `each` for every number of little-endian bytes.
    fn floats(self, bytes: &[u8], mut each: impl FnMut(usize, f64)) {
        macro_rules! all {
            ($t:ty) => {
                for (i, part) in bytes.as_chunks::<{ size_of::<$t>() }>().0.iter().enumerate() {
                    each(i, <$t>::from_le_bytes(*part).as_())
                }
            };
        }
        match (self.0, self.1) {
            (b'b', _) => bytes.iter().enumerate().for_each(|(i, byte)| each(i, f64::from(*byte != 0))),
            (b'u', 1) => all!(u8),
            (b'u', 2) => all!(u16),
            (b'u', 4) => all!(u32),
            (b'u', _) => all!(u64),
            (b'i', 1) => all!(i8),
            (b'i', 2) => all!(i16),
            (b'i', 4) => all!(i32),
            (b'i', _) => all!(i64),
            (_, 2) => all!(f16),
            (_, 4) => all!(f32),
            _ => all!(f64),
        }
    }
}

/// A number as f64; of 64-bit integers as near as it gets.
trait AsF64 {
    fn as_(self) -> f64;
}

macro_rules! as_f64 {
    ($($t:ty),*) => { $(impl AsF64 for $t { fn as_(self) -> f64 { self as f64 } })* };
}
as_f64!(u8, u16, u32, u64, i8, i16, i32, i64, f32, f64);

impl AsF64 for f16 {
    fn as_(self) -> f64 {
        self.to_f64()
    }
}

/// descr, fortran_order and shape of a header: `{'descr': '<f4', 'fortran_order': False, 'shape': (7, 28, 28), }`. A structured type is
/// given as it stands.
fn parsed(text: &str) -> Option<(String, bool, Vec<usize>)> {
    let after = |key: &str| text.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let descr = after("descr")?;
    let descr = match descr.strip_prefix('\'') {
        Some(rest) => rest.split_once('\'')?.0,
        None => descr.split_once("'fortran_order'").map_or(descr, |(list, _)| list),
    };
    let fortran = after("fortran_order")?.starts_with("True");
    let (shape, _) = after("shape")?.strip_prefix('(')?.split_once(')')?;
    let side = |part: &str| part.trim().trim_end_matches('L').parse().ok();
    let shape = shape.split(',').filter(|part| !part.trim().is_empty()).map(side).collect::<Option<Vec<_>>>()?;
    Some((descr.trim().chars().take(64).collect(), fortran, shape))
}
