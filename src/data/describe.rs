//! The description of a data set that `ganvae data` prints.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use rayon::prelude::*;
use tch::Device;

use super::checksum;
use super::dataset::Dataset;
use super::few_held_out;
use crate::data::images::{Images, Source};
use crate::pictures::grid;

/// Classes are very unequal when one has so many times the images of another.
const UNEQUAL: usize = 10;
/// Images in a preview.
const PREVIEW: usize = 100;

/// Counts, shape, range of values, classes and checksums, a line each.
pub fn describe(source: &Source) -> String {
    let mut out = String::new();
    let i = &source.train;
    // Writing to a String cannot fail.
    let _ = writeln!(out, "data      {}", source.name);
    let _ = writeln!(out, "shape     {}x{}x{} (channels x height x width)", i.channels, i.height, i.width);
    for (name, images) in [("train", &source.train), ("test", &source.test)] {
        let _ = writeln!(out, "{name:<9} {}", line(images));
    }
    for (name, images) in [("train", &source.train), ("test", &source.test)] {
        if !images.labels.is_empty() {
            let _ = writeln!(out, "{:<9} {}", format!("{name} has"), class_counts(images, &source.classes));
        }
    }
    for text in [few_held_out(source.test.count), unequal(source)].into_iter().flatten() {
        let _ = writeln!(out, "warning   {text}");
    }
    let _ = writeln!(out, "sha256    {}", checksum(source));
    out
}

/// Draws training images, evenly spaced in the set.
///
/// # Errors
/// When the picture cannot be written.
pub fn preview(source: &Source, out: &Path) -> Result<()> {
    let first = Dataset::new(&source.train.clone().take(PREVIEW), Device::Cpu)?;
    let shape = first.shape();
    let columns = grid::columns_for(first.len(), shape.height as usize, shape.width as usize);
    grid::draw(&first.spread(PREVIEW)?.x, columns)?.save(out)
}

fn line(images: &Images) -> String {
    let one = |part: &[u8]| {
        let (lo, hi) = part.iter().fold((255, 0), |(lo, hi), &p| (p.min(lo), p.max(hi)));
        (lo, hi, part.iter().map(|&p| u64::from(p)).sum::<u64>())
    };
    let both = |a: (u8, u8, u64), b: (u8, u8, u64)| (a.0.min(b.0), a.1.max(b.1), a.2 + b.2);
    let (lo, hi, sum) = images.pixels.par_chunks(1 << 20).map(one).reduce(|| (255, 0, 0), both);
    let mean = sum as f64 / images.pixels.len().max(1) as f64;
    format!("{} images, bytes {lo}..{hi}, mean {:.4} of full scale", images.count, mean / 255.0)
}

/// Training images by class.
fn counts(images: &Images, classes: &[String]) -> Vec<usize> {
    let mut counts = vec![0; classes.len()];
    for &label in &images.labels {
        if let Some(count) = counts.get_mut(label as usize) {
            *count += 1;
        }
    }
    counts
}

/// A sentence on classes of which one has ten times the images of another.
fn unequal(source: &Source) -> Option<String> {
    let counts = counts(&source.train, &source.classes);
    let (least, most) =
        (counts.iter().enumerate().min_by_key(|c| c.1)?, counts.iter().enumerate().max_by_key(|c| c.1)?);
    let named = |(class, count): (usize, &usize)| format!("{} has {count}", source.classes[class]);
    let text = format!("classes are very unequal: {}, {}; --class chooses some", named(most), named(least));
    (*most.1 >= UNEQUAL * (*least.1).max(1)).then_some(text)
}

fn class_counts(images: &Images, classes: &[String]) -> String {
    let counts = counts(images, classes);
    let named: Vec<_> = classes.iter().zip(&counts).map(|(name, n)| format!("{name}:{n}")).collect();
    named.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_what_is_there() {
        let images = |n: usize| Images::new([n, 1, 1, 2], [0, 255].repeat(n), (0..n as u32).map(|i| i % 2).collect());
        let source = Source {
            name: "two".into(),
            train: images(5).unwrap(),
            test: images(2).unwrap(),
            classes: vec!["cat".into(), "dog".into()],
            sha256: None,
        };
        let text = describe(&source);
        for part in [
            "shape     1x1x2",
            "train     5 images, bytes 0..255, mean 0.5000",
            "train has cat:3 dog:2",
            "test has  cat:1 dog:1",
            "sha256    ",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(text.contains("warning   only 2 images are held out") && !text.contains("unequal"), "{text}");
        let labels = [vec![0; 21], vec![1; 2]].concat();
        let train = Images::new([23, 1, 1, 2], vec![0; 46], labels).unwrap();
        let text = describe(&Source { train, ..source });
        assert!(text.contains("warning   classes are very unequal: cat has 21, dog has 2"), "{text}");
    }
}
