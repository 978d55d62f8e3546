//! The description of a data set that `ganvae data` prints.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use tch::Device;

use super::checksum;
use super::dataset::Dataset;
use crate::base::hash;
use crate::data::images::{Images, Source};
use crate::pictures::grid;

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
    let (lo, hi) = images.pixels.iter().fold((255, 0), |(lo, hi), &p| (p.min(lo), p.max(hi)));
    let sum: u64 = images.pixels.iter().map(|&p| u64::from(p)).sum();
    let mean = sum as f64 / images.pixels.len().max(1) as f64;
    format!(
        "{} images, bytes {lo}..{hi}, mean {:.4} of full scale, pixels sha256 {}...",
        images.count,
        mean / 255.0,
        &hash::sha256([&images.pixels[..]])[..16]
    )
}

fn class_counts(images: &Images, classes: &[String]) -> String {
    let mut counts = vec![0usize; classes.len().max(256)];
    for &label in &images.labels {
        counts[label as usize] += 1;
    }
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
    }
}
