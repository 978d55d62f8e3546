//! Rows of pixels as text: a `.csv` as Kaggle's `train.csv` and the `mnist_train.csv` that goes around, also packed by gzip.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::bufread::MultiGzDecoder;

use super::arrays::{Arrays, Layout, Split};
use super::images::MOST_CLASSES;
use super::picture::MAX_BYTES;
use crate::base::names::printable;
use crate::base::small_file;

/// Names of the column of labels, in lower case.
const LABELS: [&str; 5] = ["label", "labels", "class", "target", "y"];

/// The files of a set.
#[derive(Debug)]
pub struct Set {
    train: PathBuf,
    test: Option<PathBuf>,
}

/// A file whose name ends in `.csv` or `.csv.gz`; none for another one.
pub(super) fn of_file(path: &Path) -> Option<Set> {
    stem(path).map(|_| Set { train: path.to_owned(), test: None })
}

/// The name without `.csv` or `.csv.gz`, in lower case.
fn stem(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    name.strip_suffix(".gz").unwrap_or(&name).strip_suffix(".csv").map(str::to_owned)
}

/// A folder of .csv files of which one is called `train` or `..._train`; `test` or `..._test` beside it is held out. None for a folder
/// with anything else in it but descriptions.
///
/// # Errors
/// When the folder cannot be read.
pub(super) fn in_folder(dir: &Path) -> Result<Option<Set>> {
    let unreadable = || format!("the folder {} cannot be read", dir.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        match stem(&path) {
            Some(stem) if path.is_file() => paths.push((stem, path)),
            None if name.starts_with('.') || [".txt", ".md", ".json"].iter().any(|end| name.ends_with(end)) => {}
            _ => return Ok(None),
        }
    }
    paths.sort();
    let find = |name: &str| {
        let is = |stem: &str| stem.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with(['_', '-']));
        paths.iter().find(|(stem, _)| is(stem)).map(|(_, path)| path.clone())
    };
    Ok(find("train").map(|train| Set { train, test: find("test") }))
}

impl Set {
    /// Reads the rows.
    ///
    /// *Columns.* Each row is an image, and with a label it is the first column, or where the header names it `label`, `labels`, `class`,
    /// `target` or `y`, the first or the last. Without a header the first column is a label if the others are an image. Pixels are whole
    /// numbers 0 to 255, of square images, row by row: one number for each pixel, or red, green and blue of each.
    ///
    /// # Errors
    /// When a row differs in its length from the first, or a number is none of these: names line and column.
    pub(super) fn load(self) -> Result<Arrays> {
        let mut notes = Vec::new();
        let train = read(&self.train, &mut notes)?;
        let test = self.test.as_deref().map(|path| read(path, &mut notes)).transpose()?;
        // As Kaggle's test.csv, whose labels are the competition's secret.
        let bare = train.labels.is_some() && test.as_ref().is_some_and(|test| test.labels.is_none());
        if let (true, Some(path)) = (bare, &self.test) {
            notes.push(format!("{} has no labels, so it is not used", path.display()));
        }
        Arrays::new(train, test.filter(|_| !bare), None, notes)
    }
}

/// Where labels and pixels are in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Columns {
    count: usize,
    /// The column of the label, the first or the last.
    label: Option<usize>,
    side: usize,
    channels: usize,
}

impl Columns {
    /// What rows of so many columns are; the error is a phrase.
    fn of(header: Option<&[String]>, count: usize) -> Result<Self> {
        let image = |pixels: usize| {
            let side = |n: usize| Some(n.isqrt()).filter(|side| *side > 1 && side * side == n);
            let colour = side(pixels / 3).filter(|_| pixels.is_multiple_of(3)).map(|side| (side, 3));
            side(pixels).map(|side| (side, 1)).or(colour)
        };
        let named =
            header.and_then(|names| names.iter().position(|name| LABELS.contains(&name.to_lowercase().as_str())));
        let unlabelled = image(count);
        let labelled = image(count - 1);
        let (label, image) = match (named, header, labelled, unlabelled) {
            (Some(label), _, Some(image), _) if label == 0 || label == count - 1 => (Some(label), image),
            (Some(label), ..) if label != 0 && label != count - 1 => {
                bail!("the label in column {}: it must be the first or the last, so move it there", label + 1)
            }
            (None, Some(_), _, Some(image)) => (None, image),
            (None, None, Some(_), Some(_)) => {
                bail!("{count} columns, with or without a label: add a header such as label,pixel0,...")
            }
            (None, None, Some(image), None) => (Some(0), image),
            (None, None, None, Some(image)) => (None, image),
            _ => bail!(
                "{count} columns{}, and neither they nor all but a label are the pixels of a square image, grey or of 3 colours: \
                 write a row of label and pixels for each image, with commas between",
                named.map_or("", |_| " with a label")
            ),
        };
        Ok(Columns { count, label, side: image.0, channels: image.1 })
    }
}

/// Lines, and where reading is.
struct Lines<'a> {
    path: &'a Path,
    reader: Box<dyn BufRead>,
    line: Vec<u8>,
    number: usize,
}

impl<'a> Lines<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let open = || -> io::Result<Box<dyn BufRead>> {
            let mut file = BufReader::with_capacity(1 << 16, small_file::open(path)?);
            match file.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
                true => Ok(Box::new(BufReader::new(MultiGzDecoder::new(file)))),
                false => Ok(Box::new(file)),
            }
        };
        let reader = open().with_context(|| format!("{} cannot be read", path.display()))?;
        Ok(Lines { path, reader, line: Vec::new(), number: 0 })
    }

    /// Goes to the next line that is not empty; false at the end.
    fn next(&mut self) -> Result<bool> {
        loop {
            self.line.clear();
            self.number += 1;
            let read = self.reader.by_ref().take(MAX_BYTES).read_until(b'\n', &mut self.line);
            let read = read.map_err(|e| self.fault(None, format_args!("damaged data ({e}): fetch the file again")))?;
            if read as u64 == MAX_BYTES {
                return Err(
                    self.fault(None, format_args!("a line of more than {MAX_BYTES} bytes: it is no row of pixels"))
                );
            }
            if read == 0 {
                return Ok(false);
            }
            if self.number == 1 && self.line.starts_with(b"\xef\xbb\xbf") {
                self.line.drain(..3);
            }
            if !self.line.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    fn fields(&self) -> impl Iterator<Item = &[u8]> {
        self.line.trim_ascii().split(|b| *b == b',').map(|field| {
            let field = field.trim_ascii();
            field.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(field)
        })
    }

    fn fault(&self, column: Option<usize>, found: impl std::fmt::Display) -> anyhow::Error {
        let column = column.map_or_else(String::new, |column| format!(", column {}", column + 1));
        anyhow!("{}, line {}{column}: found {found}", self.path.display(), self.number)
    }
}

/// A whole number, also written as `1.0` or `1e0`.
fn whole(field: &[u8]) -> Option<u32> {
    let mut number = 0u32;
    if !field.is_empty() && field.len() < 9 && field.iter().all(u8::is_ascii_digit) {
        field.iter().for_each(|digit| number = number * 10 + u32::from(digit - b'0'));
        return Some(number);
    }
    let number: f64 = std::str::from_utf8(field).ok()?.parse().ok()?;
    (number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number)).then_some(number as u32)
}

fn is_number(field: &[u8]) -> bool {
    std::str::from_utf8(field).is_ok_and(|text| text.parse::<f64>().is_ok())
}

/// A field for messages.
fn shown(field: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(field).chars().take(40).collect();
    format!("\"{}\"", printable(text))
}

fn read(path: &Path, notes: &mut Vec<String>) -> Result<Split> {
    let mut lines = Lines::open(path)?;
    let nothing = || anyhow!("{} holds no rows: a row of label and pixels is wanted for each image", path.display());
    ensure!(lines.next()?, nothing());
    let header: Option<Vec<String>> = (!lines.fields().all(is_number))
        .then(|| lines.fields().map(|field| String::from_utf8_lossy(field).into_owned()).collect());
    if header.is_some() {
        ensure!(lines.next()?, nothing());
    }
    let count = lines.fields().count();
    let columns = Columns::of(header.as_deref(), count).map_err(|e| lines.fault(None, e))?;
    if let Some(header) = header.filter(|header| header.len() != count) {
        return Err(lines.fault(None, format_args!("{count} columns, and {} in the header", header.len())));
    }
    let (mut data, mut labels) = (Vec::new(), Vec::new());
    loop {
        let mut found = 0;
        for (column, field) in lines.fields().enumerate() {
            found += 1;
            let number = whole(field);
            if Some(column) == columns.label {
                let label = number.filter(|label| *label < MOST_CLASSES).ok_or_else(|| {
                    let most = MOST_CLASSES - 1;
                    lines.fault(
                        Some(column),
                        format_args!("{}, wanted a class number 0 to {most}: number the classes", shown(field)),
                    )
                })?;
                labels.push(label);
            } else if found <= columns.count {
                let value = number.and_then(|number| u8::try_from(number).ok()).ok_or_else(|| {
                    let wanted = "wanted a whole number 0 to 255: multiply by 255 if white is 1";
                    lines.fault(Some(column), format_args!("{}, {wanted}", shown(field)))
                })?;
                data.push(value);
            }
        }
        if found != columns.count {
            let wanted = format_args!(
                "{found} columns, wanted {} as in the first row: complete or delete the row",
                columns.count
            );
            return Err(lines.fault(None, wanted));
        }
        if !lines.next()? {
            break;
        }
    }
    let Columns { side, channels, label, .. } = columns;
    let n = data.len() / (side * side * channels);
    let layout = if channels == 1 { Layout::grey(n, side, side) } else { Layout::colours_last(n, side, side) }?;
    if channels == 3 {
        notes.push(format!("{}: its rows are read as red, green, blue of each pixel, {side}x{side}", path.display()));
    }
    let labels = label.map(|_| labels);
    Ok(Split { name: path.display().to_string(), shape: layout.shape, pixels: layout.arrange(data)?, labels })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Label, N·C·H·W pixels; or the error.
    fn loaded(text: &str) -> Result<(Vec<u32>, Vec<u8>), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        fs::write(&path, text).unwrap();
        match of_file(&path).unwrap().load() {
            Ok(set) => Ok((set.train.labels, set.train.pixels.to_vec())),
            Err(e) => Err(format!("{e:#}").replace(&format!("{}", path.display()), "a.csv")),
        }
    }

    #[test]
    fn labels_are_where_the_header_says() {
        let kaggle = (vec![7, 1], vec![0, 255, 3, 4, 9, 8, 7, 6]);
        for text in [
            "label,pixel0,pixel1,pixel2,pixel3\n7,0,255,3,4\n1,9,8,7,6\n",
            "\u{feff}\"label\",\"a\",\"b\",\"c\",\"d\"\r\n7, 0,255,3,\"4\"\r\n\r\n1,9,8,7,6",
            "7,0,255,3,4\n1,9,8,7,6\n",
            "a,b,c,d,Class\n0,255,3,4,7\n9,8,7,6,1\n",
            "7.0,0.0,2.55e2,3,4\n1,9,8,7,6\n",
        ] {
            assert_eq!(loaded(text).unwrap(), kaggle, "{text}");
        }
        assert_eq!(loaded("p,q,r,s\n0,255,3,4\n").unwrap(), (vec![], vec![0, 255, 3, 4]));
        // Red, green and blue of each pixel.
        assert_eq!(
            loaded("x,1,2,3\nlabel,1,2,3\n").unwrap_err(),
            "a.csv, line 2, column 1: found \"label\", wanted a whole number 0 to 255: multiply by 255 if white is 1"
        );
        let rgb = "label,a,b,c,d,e,f,g,h,i,j,k,l\n5,1,2,3,4,5,6,7,8,9,10,11,12\n";
        assert_eq!(loaded(rgb).unwrap(), (vec![5], vec![1, 4, 7, 10, 2, 5, 8, 11, 3, 6, 9, 12]));
    }

    #[test]
    fn faults_are_named_with_line_and_column() {
        for (text, want) in [
            ("", "a.csv holds no rows"),
            ("label,a,b,c,d\n", "a.csv holds no rows"),
            ("1,2,3,4,5\n1,2,3,256,5\n", "line 2, column 4: found \"256\", wanted a whole number 0 to 255"),
            ("1,2,3,4,5\n1,2,3,0.5,5\n", "line 2, column 4: found \"0.5\", wanted"),
            ("1,2,3,4,5\n\n1,2,,4,5\n", "line 3, column 3: found \"\", wanted"),
            ("-1,2,3,4,5\n", "line 1, column 1: found \"-1\", wanted a class number 0 to 65535"),
            ("label,a,b,c,d\ncat,2,3,4,5\n", "line 2, column 1: found \"cat\", wanted a class number"),
            ("1,2,3,4,5\n1,2,3,4\n", "line 2: found 4 columns, wanted 5"),
            ("1,2,3,4,5\n1,2,3,4,5,6\n", "line 2: found 6 columns, wanted 5"),
            ("1,2,3,4,5,6\n", "line 1: found 6 columns, and neither"),
            ("1;2;3;4;5\n1;2\n", "line 2: found 1 columns, and neither .. commas between"),
            ("a,label,b,c,d\n1,2,3,4,5\n", "line 2: found the label in column 2"),
            ("label,a,b,c,d,e\n1,2,3,4,5\n", "line 2: found 5 columns, and 6 in the header"),
            (&"1,".repeat(49)[..97], "line 1: found 49 columns, with or without a label"),
        ] {
            let text = loaded(text).unwrap_err();
            assert!(want.split(" .. ").all(|part| text.contains(part)), "`{want}` is not in: {text}");
        }
    }
}
