//! What a file is, from its first bytes: its name does not matter.

/// Bytes that [`recognise`] looks at.
pub const HEAD: usize = 64;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A picture that [`super::decode`] reads, if it is whole.
    Picture(Format),
    /// A picture or the like that is not read.
    Unsupported {
        /// Such as `HEIC`.
        name: &'static str,
        /// Such as `convert it (heif-convert, or sips on a Mac)`.
        what_to_do: &'static str,
    },
    /// Anything else.
    NotAPicture,
}

/// Formats that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Format {
    Jpeg,
    Png,
    Gif,
    WebP,
    Bmp,
    Pnm,
    Tiff,
    JpegXl,
}

const CONVERT: &str = "convert it to PNG or JPEG (magick)";
const HEIC: &str = "convert it (heif-convert, or sips on a Mac)";
const AVIF: &str = "convert it (avifdec)";
const JPEG_2000: &str = "convert it (opj_decompress)";
const RAW: &str = "develop it (darktable-cli, dcraw)";
const VIDEO: &str = "write its frames as pictures (ffmpeg)";
const DRAWING: &str = "draw it as pixels (rsvg-convert)";
const PAGES: &str = "write its pages as pictures (pdftoppm)";

/// What starts with these bytes, at this place.
const SIGNATURES: [(usize, &[u8], Kind); 37] = [
    (0, b"\xff\xd8\xff", Kind::Picture(Format::Jpeg)),
    (0, b"\x89PNG\r\n\x1a\n", Kind::Picture(Format::Png)),
    (0, b"GIF87a", Kind::Picture(Format::Gif)),
    (0, b"GIF89a", Kind::Picture(Format::Gif)),
    (8, b"WEBP", Kind::Picture(Format::WebP)),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", Kind::Picture(Format::JpegXl)),
    (0, b"\xff\x0a", Kind::Picture(Format::JpegXl)),
    // Raw files that start like a TIFF file come before it.
    (8, b"CR\x02", unsupported("a raw photograph (Canon)", RAW)),
    (0, b"IIRO", unsupported("a raw photograph (Olympus)", RAW)),
    (0, b"IIRS", unsupported("a raw photograph (Olympus)", RAW)),
    (0, b"IIU\0", unsupported("a raw photograph (Panasonic)", RAW)),
    (0, b"FUJIFILMCCD-RAW", unsupported("a raw photograph (Fujifilm)", RAW)),
    (0, b"FOVb", unsupported("a raw photograph (Sigma)", RAW)),
    (0, b"\0MRM", unsupported("a raw photograph (Minolta)", RAW)),
    (0, b"II\xbc\x01", unsupported("JPEG XR", CONVERT)),
    (0, b"II*\0", Kind::Picture(Format::Tiff)),
    (0, b"MM\0*", Kind::Picture(Format::Tiff)),
    (0, b"II+\0", Kind::Picture(Format::Tiff)),
    (0, b"MM\0+", Kind::Picture(Format::Tiff)),
    (0, b"\0\0\0\x0cjP  ", unsupported("JPEG 2000", JPEG_2000)),
    (0, b"\xff\x4f\xff\x51", unsupported("JPEG 2000", JPEG_2000)),
    (8, b"AVI ", unsupported("a video (AVI)", VIDEO)),
    (0, b"\x1a\x45\xdf\xa3", unsupported("a video (Matroska or WebM)", VIDEO)),
    (0, b"FLV\x01", unsupported("a video (Flash)", VIDEO)),
    (0, b"\0\0\x01\xba", unsupported("a video (MPEG)", VIDEO)),
    (0, b"%PDF", unsupported("PDF", PAGES)),
    (0, b"%!PS", unsupported("PostScript", PAGES)),
    (0, b"8BPS", unsupported("a Photoshop document", CONVERT)),
    (0, b"gimp xcf", unsupported("a GIMP document", CONVERT)),
    (0, b"\0\0\x01\0", unsupported("an icon (ICO)", CONVERT)),
    (0, b"\x76\x2f\x31\x01", unsupported("OpenEXR", CONVERT)),
    (0, b"#?RADIANCE", unsupported("Radiance HDR", CONVERT)),
    (0, b"DDS ", unsupported("DDS", CONVERT)),
    (0, b"qoif", unsupported("QOI", CONVERT)),
    (0, b"farbfeld", unsupported("farbfeld", CONVERT)),
    (4, b"moov", unsupported("a video (QuickTime)", VIDEO)),
    (4, b"mdat", unsupported("a video (QuickTime)", VIDEO)),
];

const fn unsupported(name: &'static str, what_to_do: &'static str) -> Kind {
    Kind::Unsupported { name, what_to_do }
}

/// What a file is that starts with these bytes: its first [`HEAD`], or all of it if it is shorter. More change nothing.
///
/// Raw photographs that are TIFF files by their first bytes (DNG, NEF, ARW) are taken for these.
pub fn recognise(head: &[u8]) -> Kind {
    let head = &head[..head.len().min(HEAD)];
    let at = |place: usize, what: &[u8]| head.get(place..).is_some_and(|rest| rest.starts_with(what));
    if let Some((.., kind)) = SIGNATURES.iter().find(|(place, what, kind)| {
        // At place 8 stands the kind of a RIFF file, or Canon's word in a TIFF file.
        let container = match *kind {
            _ if *place != 8 => true,
            Kind::Picture(_) => at(0, b"RIFF"),
            _ => at(0, b"RIFF") || at(0, b"II*\0"),
        };
        container && at(*place, what)
    }) {
        return *kind;
    }
    match head {
        // A bitmap: after the sizes comes that of a header, which is one of few.
        [b'B', b'M', rest @ ..] if rest.get(12..16).is_some_and(|n| matches!(n, [12..=124, 0, 0, 0])) => {
            Kind::Picture(Format::Bmp)
        }
        [b'P', b'1'..=b'7', b' ' | b'\t' | b'\r' | b'\n' | b'#', ..] => Kind::Picture(Format::Pnm),
        [_, _, _, _, b'f', b't', b'y', b'p', brands @ ..] => boxed(brands),
        _ if is_svg(head) => unsupported("SVG", DRAWING),
        _ => Kind::NotAPicture,
    }
}

/// The kind of an ISO base media file by its brands: the main one, a version, and those it is compatible with.
fn boxed(brands: &[u8]) -> Kind {
    let mut all = brands.chunks_exact(4);
    let main = all.next().unwrap_or_default();
    match main {
        b"avif" | b"avis" => unsupported("AVIF", AVIF),
        b"mif1" | b"msf1" if all.any(|brand| brand == b"avif" || brand == b"avis") => unsupported("AVIF", AVIF),
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => unsupported("HEIC", HEIC),
        b"crx " => unsupported("a raw photograph (Canon)", RAW),
        b"jp2 " | b"jpx " => unsupported("JPEG 2000", JPEG_2000),
        b"qt  " => unsupported("a video (QuickTime)", VIDEO),
        b"M4A " | b"M4B " => Kind::NotAPicture,
        _ => unsupported("a video (MP4)", VIDEO),
    }
}

fn is_svg(head: &[u8]) -> bool {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let has = |what: &[u8]| text.windows(what.len()).any(|part| part == what);
    text.starts_with(b"<svg") || (text.starts_with(b"<?xml") && has(b"<svg")) || text.starts_with(b"<!DOCTYPE svg")
}
