//! Reads CIFAR-10 and CIFAR-100: the binary version, and the Python version, whose pickles are read as data.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};

use super::archive;
use super::arrays::{Arrays, Split};
use super::files::DataFile;
use super::idx::reserve;
use crate::base::names::escaped;
use crate::base::pickle::{Id, Object, Pickle};

/// Bytes of an image [3,32,32].
const PIXELS: usize = 3 * 32 * 32;

/// The ten classes by label, as Krizhevsky (2009) names them.
pub const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// One of the published versions.
#[derive(Debug, PartialEq)]
struct Version {
    name: &'static str,
    /// The archive, and the folder that it unpacks to.
    archive: &'static str,
    folder: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    /// The file that names the classes.
    meta: &'static str,
    /// Bytes of labels before an image, of which the last counts; 0 for pickles.
    label_bytes: usize,
    /// The keys of the labels and of their names in pickles.
    keys: [&'static str; 2],
    classes: u8,
}

static VERSIONS: [Version; 4] = [
    Version {
        name: "CIFAR-10's binary version",
        archive: "cifar-10-binary.tar.gz",
        folder: "cifar-10-batches-bin",
        train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
        test: "test_batch.bin",
        meta: "batches.meta.txt",
        label_bytes: 1,
        keys: ["labels", "label_names"],
        classes: 10,
    },
    Version {
        name: "CIFAR-10's Python version",
        archive: "cifar-10-python.tar.gz",
        folder: "cifar-10-batches-py",
        train: &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
        test: "test_batch",
        meta: "batches.meta",
        label_bytes: 0,
        keys: ["labels", "label_names"],
        classes: 10,
    },
    Version {
        name: "CIFAR-100's binary version",
        archive: "cifar-100-binary.tar.gz",
        folder: "cifar-100-binary",
        train: &["train.bin"],
        test: "test.bin",
        meta: "fine_label_names.txt",
        label_bytes: 2,
        keys: ["fine_labels", "fine_label_names"],
        classes: 100,
    },
    Version {
        name: "CIFAR-100's Python version",
        archive: "cifar-100-python.tar.gz",
        folder: "cifar-100-python",
        train: &["train"],
        test: "test",
        meta: "meta",
        label_bytes: 0,
        keys: ["fine_labels", "fine_label_names"],
        classes: 100,
    },
];

/// The files of a version.
#[derive(Debug)]
pub struct Set {
    version: &'static Version,
    /// Where they are, for messages.
    place: PathBuf,
    files: Vec<DataFile>,
}

/// The version of CIFAR in `dir`, or in the folder below it that the published archive unpacks to; none without one.
///
/// # Errors
/// When a folder cannot be read, or there are several versions: names them.
pub(super) fn in_folder(dir: &Path) -> Result<Option<Set>> {
    let places = VERSIONS.iter().flat_map(|version| [(version, dir.to_owned()), (version, dir.join(version.folder))]);
    let found: Vec<_> = places.filter(|(version, place)| version.is_in(|name| place.join(name).is_file())).collect();
    let list = || found.iter().map(|(_, place)| place.display().to_string()).collect::<Vec<_>>().join(" and ");
    ensure!(
        found.len() <= 1,
        "{} holds {} data sets, in {}: give the folder of one, and put different ones into different folders",
        dir.display(),
        found.len(),
        list()
    );
    let Some((version, place)) = found.into_iter().next() else { return Ok(None) };
    let names = version.train.iter().chain([&version.test, &version.meta]);
    let paths = names.map(|name| place.join(name)).filter(|path| path.is_file());
    let files = paths.map(|path| DataFile::new(&place, path)).collect::<Result<_>>()?;
    Ok(Some(Set { version, place, files }))
}

/// The version of CIFAR in an archive as it is published; none in another one.
///
/// # Errors
/// Those of [`archive::list`].
pub(super) fn in_archive(path: &Path) -> Result<Option<Set>> {
    let all = archive::list(path)?;
    let at = |name: &str, version: &Version| all.iter().find(|file| file.name == Path::new(version.folder).join(name));
    let Some(version) = VERSIONS.iter().find(|version| version.is_in(|name| at(name, version).is_some())) else {
        return Ok(None);
    };
    let names = version.train.iter().chain([&version.test, &version.meta]);
    let files = names.filter_map(|name| at(name, version)).cloned();
    Ok(Some(Set { version, place: path.to_owned(), files: files.collect() }))
}

impl Version {
    /// Whether files with these names are of this version, perhaps not all of them.
    fn is_in(&self, has: impl Fn(&str) -> bool) -> bool {
        // The names of CIFAR-100's files say little, so all are wanted.
        let common = self.classes == 100;
        let [train, test, meta] = [self.train[0], self.test, self.meta].map(has);
        if common { train && test && meta } else { train || test }
    }

    /// What to do about a file that is wrong.
    fn again(&self) -> String {
        format!("so unpack {} again", self.archive)
    }
}

impl Set {
    /// Training and test images [N,3,32,32] with their labels: of CIFAR-100 the fine ones.
    ///
    /// The meta file names the classes; without it those of CIFAR-10 are [`CLASSES`]. A batch holds any number of images above 0.
    ///
    /// # Errors
    /// When a batch is missing, is not a whole number of records long, is no such pickle, or holds a label that is too large, or when the
    /// meta file does not hold the names of all classes.
    pub(super) fn load(self) -> Result<Arrays> {
        let Version { name, train, test, .. } = *self.version;
        let again = self.version.again();
        let missing: Vec<&str> =
            train.iter().chain([&test]).copied().filter(|name| self.file(name).is_none()).collect();
        ensure!(
            missing.is_empty(),
            "{} has no {}: {name} needs {} and {test}, {again}",
            self.place.display(),
            missing.join(" and no "),
            train.join(", ")
        );
        let (train, test) = (self.read(train)?, self.read(&[test])?);
        Arrays::new(train, Some(test), Some(self.class_names()?), Vec::new())
    }

    fn file(&self, name: &str) -> Option<&DataFile> {
        self.files.iter().find(|file| file.name.file_name() == Some(name.as_ref()))
    }

    fn class_names(&self) -> Result<Vec<String>> {
        let Version { meta, classes, .. } = *self.version;
        let Some(file) = self.file(meta) else { return Ok(CLASSES.map(String::from).to_vec()) };
        let place = || file.display().to_string();
        let bytes = file.read().with_context(place)?;
        let names: Vec<String> = match self.version.label_bytes {
            0 => pickled_names(&bytes, self.version.keys[1])
                .with_context(|| format!("{} is no such pickle, {}", place(), self.version.again()))?,
            _ => {
                let text =
                    std::str::from_utf8(&bytes).with_context(|| format!("{} cannot be read as text", place()))?;
                text.lines().map(|line| escaped(line.trim())).filter(|line| !line.is_empty()).collect()
            }
        };
        ensure!(
            names.len() == usize::from(classes),
            "{} holds {} names, wanted {classes} (one of each class), {}",
            place(),
            names.len(),
            self.version.again()
        );
        Ok(names)
    }

    /// The images of several batches, concatenated.
    fn read(&self, names: &[&str]) -> Result<Split> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new()); // [N,C,H,W], [N]
        for file in names.iter().filter_map(|name| self.file(name)) {
            let bytes = file.read().with_context(|| format!("{} cannot be read", file.display()))?;
            match self.version.label_bytes {
                0 => {
                    let (images, numbers) = pickled(&bytes, self.version).with_context(|| {
                        format!("{} is not of {}, {}", file.display(), self.version.name, self.version.again())
                    })?;
                    append(&mut pixels, &images)?;
                    labels.extend(numbers);
                }
                heading => self.read_binary(file, &bytes, heading, (&mut pixels, &mut labels))?,
            }
        }
        let name = self.place.join(names[0]).display().to_string();
        Ok(Split { name, shape: [labels.len(), 3, 32, 32], pixels, labels: Some(labels) })
    }

    fn read_binary(
        &self,
        file: &DataFile,
        bytes: &[u8],
        heading: usize,
        (pixels, labels): (&mut Vec<u8>, &mut Vec<u32>),
    ) -> Result<()> {
        let Version { name, classes, .. } = *self.version;
        let (len, record, again) = (bytes.len(), heading + PIXELS, self.version.again());
        ensure!(
            len > 0 && len.is_multiple_of(record),
            "{}: found {len} bytes, wanted a whole number of records of {record} bytes and at least one \
             (the last whole record ends at byte {}); the file is incomplete or not of {name}, {again}",
            file.display(),
            len - len % record
        );
        let total = pixels.len() + len / record * PIXELS;
        reserve(pixels, total)?;
        for (i, one) in bytes.chunks_exact(record).enumerate() {
            let label = one[heading - 1];
            ensure!(
                label < classes,
                "{}: found label {label} at byte {}, wanted 0 to {}; the file is damaged or not of {name}, {again}",
                file.display(),
                i * record + heading - 1,
                classes - 1
            );
            labels.push(label.into());
            pixels.extend_from_slice(&one[heading..]);
        }
        Ok(())
    }
}

fn append(pixels: &mut Vec<u8>, images: &[u8]) -> Result<()> {
    let total = pixels.len() + images.len();
    reserve(pixels, total)?;
    pixels.extend_from_slice(images);
    Ok(())
}

fn pickled_names(bytes: &[u8], key: &str) -> Result<Vec<String>> {
    let pickle = Pickle::read(bytes)?;
    let names = pickle.member(pickle.root, key).with_context(|| format!("it has no {key}"))?;
    let name = |id: &Id| Ok(escaped(pickle.text(*id).context("a name is no text")?.as_ref()));
    pickle.parts(names).iter().map(name).collect()
}

/// The images [N,3,32,32] and labels of a pickled batch: a dictionary with an array of bytes [N,3072] and a list of numbers.
fn pickled(bytes: &[u8], version: &Version) -> Result<(Vec<u8>, Vec<u32>)> {
    let pickle = Pickle::read(bytes)?;
    let entry = |key: &str| pickle.member(pickle.root, key).with_context(|| format!("it has no {key}"));
    let (shape, images) = array(&pickle, entry("data")?).context("its data is no array of bytes in the order of C")?;
    ensure!(
        shape.len() == 2
            && shape[1] == PIXELS as i64
            && shape[0] > 0
            && images.len() as i64 == shape[0].saturating_mul(shape[1]),
        "its data has the shape {shape:?} and {} bytes, wanted N x {PIXELS}",
        images.len()
    );
    let labels = pickle.ints(entry(version.keys[0])?)?;
    ensure!(labels.len() as i64 == shape[0], "it holds {} labels for {} images", labels.len(), shape[0]);
    let label = |n: &i64| {
        let class = u8::try_from(*n).ok().filter(|class| *class < version.classes);
        class.map(u32::from).ok_or_else(|| anyhow!("it holds the label {n}, wanted 0 to {}", version.classes - 1))
    };
    Ok((images.into_owned(), labels.iter().map(label).collect::<Result<_>>()?))
}

/// Shape and bytes of a pickled NumPy array of uint8 in the order of C; none for another object.
fn array<'a>(pickle: &'a Pickle, id: Id) -> Option<(Vec<i64>, std::borrow::Cow<'a, [u8]>)> {
    let (function, arguments, state) = pickle.call(id)?;
    let (shape, dtype, bytes) = match (function, arguments, state) {
        // numpy.core of NumPy 1, numpy._core of NumPy 2.
        (name, _, Some(state)) if name.ends_with("core.multiarray._reconstruct") => match pickle.parts(state) {
            [_, shape, dtype, order, bytes] if matches!(pickle.get(*order), Object::Int(0)) => (*shape, *dtype, *bytes),
            _ => return None,
        },
        // Protocol 5.
        (name, [bytes, dtype, shape, order], _) if name.ends_with("core.numeric._frombuffer") => {
            (pickle.text(*order)? == "C").then_some((*shape, *dtype, *bytes))?
        }
        _ => return None,
    };
    let ("numpy.dtype", [kind, ..], _) = pickle.call(dtype)? else { return None };
    let kind = pickle.text(*kind)?;
    (matches!(&*kind, "u1" | "|u1")).then_some((pickle.ints(shape).ok()?, pickle.bytes(bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const RECORD: usize = 1 + PIXELS;

    /// Record `i` of a batch: label i mod 10, red = i, green = i + 1, blue = i + 2.
    fn batch(n: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for i in 0..n {
            bytes.push((i % 10) as u8);
            for plane in 0..3 {
                bytes.extend([(i + plane) as u8; 1024]);
            }
        }
        bytes
    }

    fn folder(root: &Path) {
        for (i, name) in VERSIONS[0].train.iter().enumerate() {
            fs::write(root.join(name), batch(i + 1)).unwrap();
        }
        fs::write(root.join(VERSIONS[0].test), batch(12)).unwrap();
    }

    fn load_folder(dir: &Path) -> Result<Arrays> {
        in_folder(dir)?.context("no set")?.load()
    }

    fn error(dir: &Path) -> String {
        format!("{:#}", load_folder(dir).unwrap_err())
    }

    #[test]
    fn batches_are_joined_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join(VERSIONS[0].folder);
        fs::create_dir(&inner).unwrap();
        assert!(in_folder(dir.path()).unwrap().is_none());
        folder(&inner);
        assert!(in_folder(&inner).unwrap().is_some());
        let set = load_folder(dir.path()).unwrap();
        assert_eq!(set.train.count, 15);
        assert_eq!(set.test.unwrap().count, 12);
        assert_eq!(set.train.labels, [0, 0, 1, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]);
        // Image 13 is record 3 of the last batch: planes 3, 4, 5.
        let image = &set.train.pixels[13 * PIXELS..14 * PIXELS];
        assert_eq!([image[0], image[1023], image[1024], image[3071]], [3, 3, 4, 5]);
        assert_eq!(set.classes[9], "truck");
    }

    #[test]
    fn class_names_come_from_the_meta_file() {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path());
        let meta = dir.path().join("batches.meta.txt");
        fs::write(&meta, "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap();
        assert_eq!(load_folder(dir.path()).unwrap().classes.concat(), "abcdefghij");
        fs::write(&meta, "a\nb\n").unwrap();
        assert!(error(dir.path()).contains("batches.meta.txt holds 2 names, wanted 10"));
    }

    #[test]
    fn bad_batches_are_named() {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path());
        let mut bytes = batch(3);
        bytes[2 * RECORD] = 10;
        fs::write(dir.path().join(VERSIONS[0].train[1]), &bytes).unwrap();
        let text = error(dir.path());
        assert!(text.contains("data_batch_2.bin: found label 10 at byte 6146, wanted 0 to 9"), "{text}");

        bytes.truncate(3 * RECORD - 1);
        fs::write(dir.path().join(VERSIONS[0].train[1]), &bytes).unwrap();
        let text = error(dir.path());
        assert!(text.contains("data_batch_2.bin: found 9218 bytes, wanted a whole number"), "{text}");
        assert!(text.contains("ends at byte 6146"), "{text}");

        fs::write(dir.path().join(VERSIONS[0].train[1]), b"").unwrap();
        assert!(error(dir.path()).contains("found 0 bytes"));

        fs::remove_file(dir.path().join(VERSIONS[0].train[1])).unwrap();
        let text = error(dir.path());
        assert!(text.contains("has no data_batch_2.bin: CIFAR-10's binary version needs"), "{text}");
    }
}
