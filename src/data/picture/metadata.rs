//! Where the formats keep a picture's orientation.

use std::io::{Read, Seek, SeekFrom};

use image::metadata::Orientation;

/// Bytes of a block of Exif data that are looked at; the orientation stands near its start.
const MOST: u64 = 1 << 16;

/// The orientation in a block of Exif data: a TIFF header and a directory.
pub fn of_exif(block: &[u8]) -> Option<Orientation> {
    // Some writers copy the name of JPEG's segment into other formats.
    Orientation::from_exif_chunk(block.strip_prefix(b"Exif\0\0").unwrap_or(block))
}

/// The orientation of a PNG file, whose eXIf chunk may stand after the pixels.
pub fn of_png(file: impl Read + Seek) -> Option<Orientation> {
    find(file, 8, |head| {
        let (length, name) = head.split_at(4);
        // Its checksum follows.
        Some((name == b"eXIf", u32::from_be_bytes(length.try_into().ok()?).into(), 4))
    })
}

/// The orientation of a WebP file.
pub fn of_webp(file: impl Read + Seek) -> Option<Orientation> {
    find(file, 12, |head| {
        let (name, length) = head.split_at(4);
        let length = u32::from_le_bytes(length.try_into().ok()?);
        Some((name == b"EXIF", length.into(), u64::from(length % 2)))
    })
}

/// Walks the chunks of a file: their heads give whether it is the one, its length, and the length of what follows it.
fn find(
    mut file: impl Read + Seek,
    start: u64,
    read: impl Fn(&[u8; 8]) -> Option<(bool, u64, u64)>,
) -> Option<Orientation> {
    let mut at = start;
    let mut head = [0; 8];
    loop {
        file.seek(SeekFrom::Start(at)).ok()?;
        file.read_exact(&mut head).ok()?;
        let (found, length, after) = read(&head)?;
        if found {
            let mut block = Vec::new();
            file.take(length.min(MOST)).read_to_end(&mut block).ok()?;
            return of_exif(&block);
        }
        at += 8 + length + after;
    }
}
