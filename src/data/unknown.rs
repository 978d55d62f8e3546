//! What a file is that ganvae does not read as a data set, and what to do about it.

use std::path::Path;

use super::archive;

/// What ganvae reads, for sentences.
const READ: &str = "a folder, .zip or .tar of pictures, a .npy or .npz, IDX files, CIFAR or a .csv of pixels";

/// Formats by their first bytes, with a phrase on what to do.
const MAGICS: [(&[u8], &str, &str); 29] = [
    (b"%PDF-", "a PDF document", "extract its pictures, for example with pdfimages, and give the folder"),
    (
        b"PAR1",
        "a Parquet table",
        "write its images to .npy or to picture files with pandas or datasets, and give those",
    ),
    (
        b"ARROW1",
        "an Arrow table",
        "write its images to .npy or to picture files with pandas or datasets, and give those",
    ),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file",
        "save the images with numpy.savez(\"images.npz\", images=h5py.File(...)[...][:])",
    ),
    (
        b"MATLAB 5.0",
        "a MATLAB file",
        "save the images with numpy.savez(\"images.npz\", images=scipy.io.loadmat(...)[...])",
    ),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it and give the folder"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it and give the folder"),
    (b"\xfd7zXZ\0", "a file packed by xz", "unpack it and give what is in it"),
    (b"BZh", "a file packed by bzip2", "unpack it and give what is in it"),
    (b"\x28\xb5\x2f\xfd", "a file packed by zstd", "unpack it and give what is in it"),
    (b"\x1f\x9d", "a file packed by compress", "unpack it and give what is in it"),
    (b"MSCF", "a cabinet archive", "unpack it and give the folder"),
    (b"SQLite format 3\0", "an SQLite database", "write its images to a folder and give that"),
    (b"\x89PNG\r\n\x1a\n", "a single picture", ONE),
    (b"\xff\xd8\xff", "a single picture", ONE),
    (b"GIF8", "a single picture", ONE),
    (b"BM", "a single picture", ONE),
    (b"II*\0", "a single TIFF picture", ONE),
    (b"MM\0*", "a single TIFF picture", ONE),
    (b"\0\0\x01\0", "an icon", ONE),
    (b"8BPS", "a Photoshop picture", ONE),
    (b"\xff\x0a", "a JPEG XL picture", ONE),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture", ONE),
    (b"\x1aE\xdf\xa3", "a video", VIDEO),
    (b"OggS", "a video or sound", VIDEO),
    (b"ID3", "a sound", "give pictures"),
    (b"\x7fELF", "a program", "give images"),
    (b"#!", "a script", "give images"),
    (b"{\"", "a JSON file", "give the folder of the pictures that it describes"),
];

const ONE: &str = "give a folder with many of them";
const VIDEO: &str = "write its frames to a folder, for example with ffmpeg -i FILE frames/%06d.png, and give that";

/// What the file at `path` is, by its content, and what to do: one sentence without its name.
pub(super) fn describe_unknown(path: &Path) -> String {
    let (start, gzip) = match archive::start_of(path, 64 << 10) {
        Ok(start) => start,
        Err(e) => return format!("it cannot be read ({:#}): check that it is a file of yours", e.root_cause()),
    };
    let (what, todo) = described(path, &start);
    match gzip {
        true if start.is_empty() => format!("it is a damaged or empty gzip file: fetch it again, wanted {READ}"),
        true => format!("it is {what}, packed by gzip: unpack it; then {todo}"),
        false => format!("it is {what}, which is not read: {todo}"),
    }
}

fn described(path: &Path, start: &[u8]) -> (String, String) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let is = |what: &str, todo: &str| (what.to_owned(), todo.to_owned());
    let wanted = || format!("wanted {READ}");
    if start.is_empty() {
        return ("an empty file".to_owned(), wanted());
    }
    if let Some((_, what, todo)) = MAGICS.iter().find(|(magic, ..)| start.starts_with(magic)) {
        return is(what, todo);
    }
    let at = |offset: usize, text: &[u8]| start.get(offset..).is_some_and(|rest| rest.starts_with(text));
    if at(0, b"RIFF") {
        return if at(8, b"WEBP") { is("a single picture", ONE) } else { is("a video or sound", VIDEO) };
    }
    if at(4, b"ftyp") {
        let picture = [&b"heic"[..], b"heix", b"mif1", b"avif"].iter().any(|brand| at(8, brand));
        return match picture {
            true => is("a HEIC or AVIF picture", "convert many of them to PNG or JPEG and give the folder"),
            false => is("a video", VIDEO),
        };
    }
    if start.starts_with(super::npy::MAGIC) {
        return is("a NumPy array", "give the .npy");
    }
    if name.contains("tfrecord") || is_tfrecord(start) {
        return is(
            "a TFRecord file",
            "write its pictures to a folder or its arrays to .npz with tensorflow_datasets.as_numpy, and give that",
        );
    }
    if matches!(start, [0x80, 2..=5, ..]) {
        return is(
            "a Python pickle, which may run code",
            "save the images with numpy.savez(\"images.npz\", images=...)",
        );
    }
    if start.starts_with(b"PK") && has(start, b"data.pkl") {
        return is("a file of torch.save", "save the images with numpy.savez(\"images.npz\", images=tensor.numpy())");
    }
    if start.starts_with(b"PK") && has(start, b"[Content_Types].xml") {
        return is("an Office document", "give the pictures in it as a folder");
    }
    if start.starts_with(b"<") {
        return is("a web page or XML", "fetch the data set itself: this may be the page of an error or a login");
    }
    let text = std::str::from_utf8(start).map_or_else(|e| e.error_len().is_none() && e.valid_up_to() > 0, |_| true);
    if text && !start.contains(&0) {
        return ("a text file".to_owned(), format!("{}, and rows of pixels must be in a file called .csv", wanted()));
    }
    (format!("of no known format (it starts with {:02x?})", &start[..start.len().min(4)]), wanted())
}

fn has(start: &[u8], part: &[u8]) -> bool {
    start.windows(part.len()).any(|window| window == part)
}

/// A record is its length in 8 bytes, a checksum, and a message of that length whose first field is 1.
fn is_tfrecord(start: &[u8]) -> bool {
    let Some((head, rest)) = start.split_first_chunk::<8>() else { return false };
    let len = u64::from_le_bytes(*head);
    len > 0 && len < 1 << 32 && head[4..] == [0; 4] && rest.get(4) == Some(&0x0a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_by_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        for (bytes, parts) in [
            (&b"%PDF-1.7\n"[..], "it is a PDF document, which is not read: extract"),
            (b"PAR1\x15\x04", "a Parquet table .. .npy"),
            (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file .. numpy.savez"),
            (b"MATLAB 5.0 MAT-file", "a MATLAB file .. loadmat"),
            (b"Rar!\x1a\x07\x01\0", "a RAR archive .. unpack"),
            (b"7z\xbc\xaf\x27\x1c\0\x04", "a 7-Zip archive .. unpack"),
            (b"\x09\0\0\0\0\0\0\0abcd\x0a\x07", "a TFRecord file .. tensorflow_datasets"),
            (b"\x80\x04\x95", "a Python pickle, which may run code"),
            (b"\x89PNG\r\n\x1a\n", "a single picture .. folder with many"),
            (b"\0\0\0\x20ftypheic", "HEIC .. convert"),
            (b"\0\0\0\x20ftypisom", "a video .. ffmpeg"),
            (b"<!doctype html>", "a web page .. login"),
            (b"hello there\n", "a text file .. called .csv"),
            (b"", "an empty file .. wanted a folder"),
            (b"\xfe\xfe\xfe\xfe\0", "no known format (it starts with [fe, fe, fe, fe])"),
            (b"\x1f\x8b\x08\0", "a damaged or empty gzip"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let text = describe_unknown(&path);
            assert!(parts.split(" .. ").all(|part| text.contains(part)), "{text}");
        }
        assert!(describe_unknown(&dir.path().join("none")).contains("cannot be read (No such file"));
    }
}
