//! What a file is, by its content, and what is left out of a set of pictures for it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use rayon::prelude::*;

use super::files::DataFile;
use super::picture::{self, HEAD, Kind};

/// Endings of pictures' names: such a file without the content of one is a broken picture.
const ENDINGS: [&str; 16] = [
    "png", "jpg", "jpeg", "jfif", "jpe", "bmp", "gif", "webp", "pbm", "pgm", "ppm", "pnm", "tif", "tiff", "jxl", "apng",
];

/// The indices of the files that are pictures, and a note on the others.
pub fn pictures(files: &[DataFile]) -> (Vec<usize>, Option<String>) {
    let kinds: Vec<Result<Option<String>>> = files.par_iter().map(other_than_picture).collect();
    let (mut pictures, mut others) = (Vec::new(), BTreeMap::new());
    for (i, kind) in kinds.into_iter().enumerate() {
        match kind {
            // One that cannot be opened is counted with the broken pictures.
            Ok(None) | Err(_) => pictures.push(i),
            Ok(Some(what)) => *others.entry(what).or_insert(0) += 1,
        }
    }
    let all: Vec<String> = others.into_iter().map(|(what, count): (String, usize)| format!("{count} {what}")).collect();
    (pictures, (!all.is_empty()).then(|| format!("left out: {}", all.join(", "))))
}

/// Whether a file is a picture, by its content or its ending.
///
/// # Errors
/// When it cannot be read.
pub fn is_picture(path: &Path) -> Result<bool> {
    let file = DataFile::new(Path::new(""), path.to_owned())?;
    Ok(other_than_picture(&file)?.is_none())
}

/// What a file is that is no picture; none for a picture.
fn other_than_picture(file: &DataFile) -> Result<Option<String>> {
    let ending = file.name.extension().map(|e| e.to_string_lossy().to_lowercase());
    let named = ending.is_some_and(|e| ENDINGS.contains(&e.as_str()));
    Ok(match picture::recognise(&file.head(HEAD as u64)?) {
        Kind::Picture(_) => None,
        Kind::Unsupported { name, what_to_do } => Some(format!("{name} ({what_to_do})")),
        Kind::NotAPicture => (!named).then(|| "files that are no pictures".into()),
    })
}
