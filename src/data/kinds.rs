//! What a file is, by its content, and what is left out of a set of pictures for it.

use std::collections::BTreeMap;

use anyhow::Result;
use rayon::prelude::*;

use super::files::DataFile;

/// Endings of pictures' names: such a file without the content of one is a broken picture.
const ENDINGS: [&str; 12] = ["png", "jpg", "jpeg", "jfif", "bmp", "gif", "webp", "pbm", "pgm", "ppm", "pnm", "tif"];
/// Bytes that tell what a file is.
const HEAD: u64 = 64;

/// The files that are pictures, in their order, and a note on those that are not.
///
/// # Errors
/// When a file cannot be opened.
pub fn pictures(files: Vec<DataFile>) -> Result<(Vec<DataFile>, Option<String>)> {
    let kind = |file: &DataFile| -> Result<Option<String>> {
        let head = file.head(HEAD)?;
        let ending = file.name.extension().map(|e| e.to_string_lossy().to_lowercase());
        let named = ending.is_some_and(|e| ENDINGS.contains(&e.as_str()));
        let is_picture = named || image::guess_format(&head).is_ok();
        Ok((!is_picture).then(|| "files that are no pictures".into()))
    };
    let kinds: Vec<Result<Option<String>>> = files.par_iter().map(kind).collect();
    let (mut pictures, mut others) = (Vec::new(), BTreeMap::new());
    for (file, kind) in files.into_iter().zip(kinds) {
        match kind {
            // One that cannot be opened is counted with the broken pictures.
            Ok(None) | Err(_) => pictures.push(file),
            Ok(Some(what)) => *others.entry(what).or_insert(0) += 1,
        }
    }
    let all: Vec<String> = others.into_iter().map(|(what, count): (String, usize)| format!("{count} {what}")).collect();
    Ok((pictures, (!all.is_empty()).then(|| format!("left out: {}", all.join(", ")))))
}
