//! Shards of WebDataset: tar files whose members belong together by name, a picture and what is known about it.
//!
//! The format: <https://github.com/webdataset/webdataset>. A sample is consecutive members with one key, the path up to the first dot
//! of the file name: `0001.jpg` and `0001.cls`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::archive;
use super::files::DataFile;
use super::images::MOST_CLASSES;

/// Shards that one pattern may name.
const MOST: usize = 1 << 20;

/// The shards that a SPEC names: a pattern as `train-{000..009}.tar`, which no file has as its name, or a folder of nothing but .tar
/// files; none for another SPEC.
///
/// # Errors
/// When one of a pattern's files is missing, or the folder cannot be read.
pub fn paths(spec: &Path) -> Result<Option<Vec<PathBuf>>> {
    if spec.is_dir() {
        return folder(spec);
    }
    let Some(text) = spec.to_str().filter(|_| !spec.exists()) else { return Ok(None) };
    let paths: Vec<PathBuf> = expanded(text)?.into_iter().map(PathBuf::from).collect();
    if let [only] = &paths[..]
        && only == spec
    {
        return Ok(None);
    }
    if let Some(missing) = paths.iter().find(|path| !path.is_file()) {
        bail!("{}: it names {} shards, and there is no {}", spec.display(), paths.len(), missing.display());
    }
    Ok(Some(paths))
}

fn folder(dir: &Path) -> Result<Option<Vec<PathBuf>>> {
    let unreadable = || format!("the folder {} cannot be read", dir.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        if !path.is_file() || path.extension().is_none_or(|e| e != "tar") {
            return Ok(None);
        }
        paths.push(path);
    }
    paths.sort();
    Ok((!paths.is_empty()).then_some(paths))
}

/// A pattern as the shell expands it: `{000..009}` counts with the digits of its start, `{a,b}` lists.
fn expanded(pattern: &str) -> Result<Vec<String>> {
    let braces = pattern.find('{').and_then(|open| Some((open, open + pattern[open..].find('}')?)));
    let Some((open, close)) = braces else { return Ok(vec![pattern.to_owned()]) };
    let (before, inside, after) = (&pattern[..open], &pattern[open + 1..close], expanded(&pattern[close + 1..])?);
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let range = inside.split_once("..").and_then(|(a, b)| Some((a.len(), digits(a)?, digits(b)?)));
    let parts: Vec<String> = match range {
        Some((width, first, last)) => {
            let count: usize = usize::abs_diff(first, last);
            ensure!(count < MOST, "{pattern}: {{{inside}}} counts more than {MOST} shards: name fewer");
            let number = |i| if first <= last { first + i } else { first - i };
            (0..=count).map(|i| format!("{:0width$}", number(i))).collect()
        }
        None if inside.contains(',') => inside.split(',').map(str::to_owned).collect(),
        None => vec![format!("{{{inside}}}")],
    };
    ensure!(parts.len().saturating_mul(after.len()) <= MOST, "{pattern}: it names more than {MOST} shards: name fewer");
    Ok(parts.iter().flat_map(|part| after.iter().map(move |rest| format!("{before}{part}{rest}"))).collect())
}

/// A sample as far as it is read.
#[derive(Default)]
struct Sample {
    key: Vec<u8>,
    picture: Option<DataFile>,
    class: Option<u32>,
}

/// The pictures of all shards, in the order of the members, and their class numbers if they have any.
///
/// A member whose content is a picture is the picture of its sample, `.cls` is its class as a decimal number, and other members are
/// ignored, as are samples without a picture. A picture's name starts with the name of its shard.
///
/// # Errors
/// Those of [`archive::list`]; when a sample has two pictures, when a class is no number, when some pictures have a class and others
/// have none, or when there are no pictures.
pub fn list(shards: &[PathBuf]) -> Result<(Vec<DataFile>, Option<Vec<u32>>)> {
    let (mut files, mut labels, mut bare) = (Vec::new(), Vec::new(), None);
    for shard in shards {
        let mut sample = Sample::default();
        let mut finish = |sample: Sample| {
            let Some(mut picture) = sample.picture else { return };
            match sample.class {
                Some(class) => labels.push(class),
                None => bare = Some(picture.display().to_string()),
            }
            picture.name = Path::new(shard.file_name().unwrap_or_default()).join(&picture.name);
            files.push(picture);
        };
        for member in archive::list(shard)? {
            let (key, extension) = parts(&member);
            if key != sample.key {
                finish(std::mem::replace(&mut sample, Sample { key, ..Sample::default() }));
            }
            if extension == b"cls" {
                sample.class = Some(class(&member)?);
            } else if is_picture(&member)? {
                if let Some(first) = &sample.picture {
                    bail!(
                        "{} is a second picture beside {}: one picture for each name is wanted, so write shards without the other",
                        member.display(),
                        first.display()
                    );
                }
                sample.picture = Some(member);
            }
        }
        finish(sample);
    }
    ensure!(
        !files.is_empty(),
        "{}: there are no pictures in {} shards: a member such as 0001.jpg is wanted for each sample",
        shards.first().map(|path| path.display().to_string()).unwrap_or_default(),
        shards.len()
    );
    match (labels.is_empty(), bare) {
        (true, _) => Ok((files, None)),
        (false, None) => Ok((files, Some(labels))),
        (false, Some(bare)) => {
            bail!("{bare} has no class, and {} others have one: give each a member .cls, or none", labels.len())
        }
    }
}

/// The key of a member, and its extension in lower case.
fn parts(member: &DataFile) -> (Vec<u8>, Vec<u8>) {
    let name = member.name.as_os_str().as_encoded_bytes();
    let base = name.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    match name[base..].iter().position(|b| *b == b'.') {
        Some(dot) => (name[..base + dot].to_vec(), name[base + dot + 1..].to_ascii_lowercase()),
        None => (name.to_vec(), Vec::new()),
    }
}

fn class(member: &DataFile) -> Result<u32> {
    let mut text = Vec::new();
    member
        .stream()
        .and_then(|file| Ok(file.take(32).read_to_end(&mut text)?))
        .with_context(|| member.display().to_string())?;
    let text = String::from_utf8_lossy(&text);
    let number = text.trim().parse().ok().filter(|class| *class < MOST_CLASSES);
    number.with_context(|| {
        let most = MOST_CLASSES - 1;
        format!(
            "{}: found {:?}, wanted the number of a class, 0 to {most}: write the number as text",
            member.display(),
            text.trim()
        )
    })
}

fn is_picture(member: &DataFile) -> Result<bool> {
    let mut start = Vec::new();
    member
        .stream()
        .and_then(|file| Ok(file.take(32).read_to_end(&mut start)?))
        .with_context(|| member.display().to_string())?;
    Ok(image::guess_format(&start).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_expanded_as_by_the_shell() {
        for (pattern, want) in [
            ("a.tar", "a.tar"),
            ("a-{008..011}.tar", "a-008.tar a-009.tar a-010.tar a-011.tar"),
            ("{2..0}", "2 1 0"),
            ("{a,b}-{0..1}", "a-0 a-1 b-0 b-1"),
            ("{x}{", "{x}{"),
        ] {
            assert_eq!(expanded(pattern).unwrap().join(" "), want);
        }
        for pattern in ["{0..99999999}", "{0..1048575}{0..1048575}"] {
            assert!(expanded(pattern).unwrap_err().to_string().contains("more than 1048576 shards"));
        }
    }
}
