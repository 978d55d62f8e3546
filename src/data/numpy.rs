//! NumPy's arrays as a data set: a `.npy`, a `.npz`, or a folder of these; which array is what is told by its name.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::archive;
use super::arrays::{Arrays, Split};
use super::files::DataFile;
use super::npy::{Array, MAGIC};

/// Named arrays.
#[derive(Debug)]
pub struct Set {
    /// The file or folder, for messages.
    name: String,
    /// The key of each array, and where it is.
    arrays: Vec<(String, DataFile)>,
}

/// A single file: `.npy` or `.npz` by its content; none for another one. `start` are its first bytes.
///
/// # Errors
/// When an archive cannot be read.
pub(super) fn of_file(path: &Path, start: &[u8]) -> Result<Option<Set>> {
    let name = path.display().to_string();
    if start.starts_with(MAGIC) {
        let file = DataFile::new(path.parent().unwrap_or(Path::new("")), path.to_owned())?;
        return Ok(Some(Set { name, arrays: vec![(stem(path), file)] }));
    }
    let npz = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npz"));
    if !start.starts_with(b"PK") && !npz {
        return Ok(None);
    }
    let arrays = members(path)?;
    Ok((npz || !arrays.is_empty()).then_some(Set { name, arrays }))
}

/// A folder of arrays without sub-folders; none for another one.
///
/// # Errors
/// When the folder or an archive in it cannot be read.
pub(super) fn in_folder(dir: &Path) -> Result<Option<Set>> {
    let unreadable = || format!("the folder {} cannot be read", dir.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        match extension.as_str() {
            _ if hidden => {}
            "npy" | "npz" if path.is_file() => paths.push(path),
            // Descriptions; anything else makes it a folder of something else.
            "txt" | "md" | "csv" | "json" if path.is_file() => {}
            _ => return Ok(None),
        }
    }
    paths.sort();
    let mut arrays = Vec::new();
    for path in &paths {
        match path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy")) {
            true => arrays.push((stem(path), DataFile::new(dir, path.clone())?)),
            false => {
                arrays.extend(members(path)?.into_iter().map(|(key, file)| (format!("{}_{key}", stem(path)), file)))
            }
        }
    }
    Ok((!paths.is_empty()).then(|| Set { name: dir.display().to_string(), arrays }))
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The arrays of an archive that holds nothing else; no array of another one.
fn members(path: &Path) -> Result<Vec<(String, DataFile)>> {
    let named = |file: DataFile| Some((file.name.to_str()?.strip_suffix(".npy")?.to_owned(), file));
    let all: Option<Vec<_>> = archive::list(path)?.into_iter().map(named).collect();
    Ok(all.unwrap_or_default())
}

/// A part of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    All,
    Train,
    Validation,
    Test,
}

/// What an array holds by its key: `x_train`, `test_labels`, `images`, `k49-train-imgs`. The last word that says something counts.
fn role(key: &str) -> (Part, Option<bool>) {
    let (mut part, mut images) = (None, None);
    let key = key.to_lowercase();
    for word in key.split(|c: char| !c.is_alphanumeric()).rev() {
        let (its_part, its_images) = match word {
            "train" | "training" => (Some(Part::Train), None),
            "test" | "t10k" => (Some(Part::Test), None),
            "val" | "valid" | "validation" => (Some(Part::Validation), None),
            "x" | "images" | "image" | "imgs" | "img" | "data" | "pixels" => (None, Some(true)),
            "y" | "labels" | "label" | "targets" | "target" => (None, Some(false)),
            _ => (None, None),
        };
        (part, images) = (part.or(its_part), images.or(its_images));
    }
    (part.unwrap_or(Part::All), images)
}

impl Set {
    /// Reads the arrays that are images and labels.
    ///
    /// *Keys.* Images are `x`, `images`, `image`, `imgs`, `img`, `data`, `pixels`; labels `y`, `labels`, `label`, `targets`, `target`;
    /// `train`, `test` and `val` beside these words say the split, in any order: `x_train`, `train_images`. A single array is the images,
    /// whatever its key. `val` is held out where there is no `test`. Other arrays are left out, which a note says.
    ///
    /// # Errors
    /// When no array or two arrays are the images of a split: lists what there is; the errors of [`Array`].
    pub(super) fn load(self) -> Result<Arrays> {
        let headers = |(key, file): &(String, DataFile)| Ok(Array::open(file)?.described(key));
        let all = || Ok::<_, anyhow::Error>(self.arrays.iter().map(headers).collect::<Result<Vec<_>>>()?.join(", "));
        let single = self.arrays.len() == 1;
        let find = |part: Part, images: bool| -> Result<Option<&(String, DataFile)>> {
            let fits = |(key, _): &&(String, DataFile)| match single {
                true => images && part == Part::All,
                false => role(key) == (part, Some(images)),
            };
            let mut found = self.arrays.iter().filter(fits);
            if let (Some((a, _)), Some((b, _))) = (found.next(), found.next()) {
                bail!(
                    "{}: the arrays {a} and {b} may both be the {} wanted: leave one of them out ({})",
                    self.name,
                    if images { "images" } else { "labels" },
                    all()?
                );
            }
            Ok(self.arrays.iter().find(fits))
        };
        let mut notes = Vec::new();
        let mut used = Vec::new();
        let mut split = |part: Part, notes: &mut Vec<String>| -> Result<Option<Split>> {
            let Some((key, images)) = find(part, true)? else { return Ok(None) };
            let labels = find(part, false)?;
            used.extend([Some(key), labels.map(|(key, _)| key)].into_iter().flatten());
            let name = images.display().to_string();
            let (shape, pixels, note) = Array::open(images)?.images()?;
            notes.extend(note);
            let labels = match labels
                .map(|(_, file)| Array::open(file)?.labels().map(|read| (file, read)))
                .transpose()?
            {
                None => None,
                Some((_, Err(note))) => {
                    notes.push(note);
                    None
                }
                Some((file, Ok(labels))) => {
                    ensure!(
                        labels.len() == shape[0],
                        "{} holds {} labels but {name} holds {} images: there must be one label for each image, so save both together",
                        file.display(),
                        labels.len(),
                        shape[0]
                    );
                    Some(labels)
                }
            };
            Ok(Some(Split { name, shape, pixels, labels }))
        };
        // Without a training part, the only one there is.
        let order = [Part::All, Part::Train, Part::Test, Part::Validation];
        let mut first = None;
        for part in order {
            if let Some(found) = split(part, &mut notes)? {
                first = Some((part, found));
                break;
            }
        }
        let Some((part, train)) = first else {
            bail!(
                "{} holds {}, and none is called images: save the images with numpy.savez({:?}, images=..., labels=...)",
                self.name,
                if self.arrays.is_empty() { "no arrays".to_owned() } else { format!("the arrays {}", all()?) },
                "images.npz"
            );
        };
        let mut test = None;
        for held_out in [Part::Test, Part::Validation] {
            if test.is_none() && held_out != part && part != Part::Validation {
                test = split(held_out, &mut notes)?;
            }
        }
        let unused = self.arrays.iter().filter(|(key, _)| !used.contains(&key)).map(|(key, _)| key.as_str());
        let unused = unused.collect::<Vec<_>>().join(", ");
        if !unused.is_empty() {
            notes.push(format!("{}: not used: {unused}", self.name));
        }
        Arrays::new(train, test, None, notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_what_an_array_is() {
        use Part::{All, Test, Train, Validation};
        for (key, want) in [
            ("x_train", (Train, Some(true))),
            ("train_labels", (Train, Some(false))),
            ("X_test", (Test, Some(true))),
            ("val_images", (Validation, Some(true))),
            ("k49-train-imgs_arr_0", (Train, Some(true))),
            ("data_y_train", (Train, Some(false))),
            ("images", (All, Some(true))),
            ("latents_classes", (All, None)),
        ] {
            assert_eq!(role(key), want, "{key}");
        }
    }
}
