//! Harmed images of every kind that is read: IDX files, CIFAR-10's batches, folders of pictures; and the harness that does the harm.

#[path = "common/harm.rs"]
mod harm;

use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::{Component, Path};
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use flate2::write::{DeflateEncoder, ZlibEncoder};
use flate2::{Compression, Crc};
use ganvae::base::seed::Rng;
use ganvae::base::setting::Settings;
use ganvae::data::arrays::{self, Arrays};
use ganvae::data::images::{Images, Source};
use ganvae::data::picture::{self, Background, Filter, Fit, Shape};
use ganvae::data::picture_set::{PictureSet, ReadOptions};
use ganvae::data::subset::Subset;
use ganvae::data::{archive, cifar, idx};
use harm::*;
use image::codecs::gif::GifEncoder;
use image::codecs::pnm::{PnmEncoder, PnmSubtype, SampleEncoding};
use image::{DynamicImage, ImageFormat, Rgba, RgbaImage};

/// What is accepted as a set of images is one.
fn whole(source: &Source) {
    let fits = |i: &Images| {
        assert!(i.count > 0 && [1, 3, 4].contains(&i.channels));
        assert_eq!(i.pixels.len(), i.count * i.image_len());
        assert!(i.labels.is_empty() || i.labels.len() == i.count);
        assert!(i.labels.iter().all(|&l| (l as usize) < source.classes.len()), "a label without a class");
    };
    let (train, test) = (&source.train, &source.test);
    fits(train);
    fits(test);
    assert_eq!((train.channels, train.height, train.width), (test.channels, test.height, test.width));
}

/// Reads the set of arrays at a path; it is a whole one, or refused.
fn read_arrays(path: &Path) -> Result<Arrays> {
    let kind = arrays::recognise(path)?.ok_or_else(|| anyhow!("{} is no set of arrays", path.display()))?;
    let set = kind.load()?;
    let Arrays { train, test, classes, .. } = set.clone();
    whole(&Source { name: String::new(), test: test.unwrap_or_else(|| train.clone()), train, classes, sha256: None });
    Ok(set)
}

/// IDX: two sets, each in its folder; the files of the second are packed.
struct Idx {
    sets: Vec<Folder>,
    /// The unpacked files of both sets.
    plain: Vec<Vec<u8>>,
    at: usize,
}

impl Idx {
    fn new(dir: &Path) -> Self {
        let (mut sets, mut plain) = (Vec::new(), Vec::new());
        for (set, [train, test, h, w]) in [[3u32, 2, 8, 8], [10, 1, 1, 5]].into_iter().enumerate() {
            let mut files = Vec::new();
            for (i, stem) in idx::STEMS.iter().enumerate() {
                let count = if i < 2 { train } else { test };
                let labels = i % 2 == 1;
                let sizes = if labels { vec![count] } else { vec![count, h, w] };
                let mut bytes = vec![0, 0, 8, sizes.len() as u8];
                bytes.extend(sizes.iter().flat_map(|s| s.to_be_bytes()));
                let data = noise(i as u64, sizes.iter().product::<u32>() as usize);
                bytes.extend(data.iter().map(|b| if labels { b % 10 } else { *b }));
                files.push(match set {
                    0 => ((*stem).to_owned(), bytes.clone()),
                    _ => (format!("{}.gz", stem.replace("-idx", ".idx")), gzip(&bytes)),
                });
                plain.push(bytes);
            }
            sets.push(Folder::new(dir.join(format!("set{set}")), files));
        }
        Idx { sets, plain, at: 0 }
    }
}

impl Target for Idx {
    fn seeds(&self) -> usize {
        self.plain.len()
    }

    fn put(&mut self, seed: usize, rng: Option<&mut Rng>) -> Input {
        let plain = &self.plain[seed];
        let bytes = match rng {
            None => self.sets[seed / 4].files[seed % 4].1.clone(),
            Some(rng) => {
                let other = &self.plain[pick(rng, self.plain.len())];
                match rng.below(3) {
                    0 => harm(rng, plain, other, None),
                    1 => gzip(&harm(rng, plain, other, None)),
                    _ => harm(rng, &gzip(plain), &gzip(other), None),
                }
            }
        };
        self.at = seed / 4;
        let path = self.sets[self.at].put(seed % 4, &bytes);
        // A buffer of 256 KiB, the window of inflate, 64 KiB that a packed file is trusted with at once; then what it
        // unpacks to, at most 1032 to 1 and held twice while it grows.
        Input { path, bytes: bytes.len(), most: (512 << 10) + 2 * 1040 * bytes.len() }
    }

    fn read(&mut self) -> Result<()> {
        let set = read_arrays(&self.sets[self.at].dir)?;
        assert!(set.test.is_some() && set.notes.is_empty());
        Ok(())
    }
}

/// CIFAR-10: five batches of one record, one of two, and the names of the classes.
struct Cifar(Folder);

impl Cifar {
    fn new(dir: &Path) -> Self {
        let record = |i: u64| [vec![i as u8], noise(i, 3072)].concat();
        let mut files: Vec<(String, Vec<u8>)> = (1..6).map(|i| (format!("data_batch_{i}.bin"), record(i))).collect();
        files.push(("test_batch.bin".into(), [record(6), record(9)].concat()));
        files.push(("batches.meta.txt".into(), (cifar::CLASSES.join("\n") + "\n\n").into_bytes()));
        Cifar(Folder::new(dir.to_owned(), files))
    }
}

impl Target for Cifar {
    fn seeds(&self) -> usize {
        self.0.files.len()
    }

    fn put(&mut self, seed: usize, rng: Option<&mut Rng>) -> Input {
        let files = &self.0.files;
        let bytes = match rng {
            None => files[seed].1.clone(),
            Some(rng) => {
                let other = &files[pick(rng, files.len())].1;
                let names = files[seed].0.ends_with(".txt");
                harm(rng, &files[seed].1, other, names.then_some("cat \n x"))
            }
        };
        let path = self.0.put(seed, &bytes);
        // A buffer of 64 records; the records; names at a few dozen bytes for each line.
        Input { path, bytes: bytes.len(), most: (512 << 10) + 64 * bytes.len() }
    }

    fn read(&mut self) -> Result<()> {
        let train = read_arrays(&self.0.dir)?.train;
        assert_eq!((train.channels, train.height, train.width), (3, 32, 32));
        Ok(())
    }
}

/// Pictures: for every extension a folder of one plain picture and one harmed, both of 8x8 pixels.
struct Pictures {
    folders: Vec<Folder>,
    /// The folder that each good picture belongs in, and its bytes.
    seeds: Vec<(usize, Vec<u8>)>,
    at: usize,
    fit: Fit,
}

/// No limits to the pictures of a folder.
const PNM_WORDS: &str = "P1 P2 P3 P4 P5 P6 P7 # \n 255 65535 32768 40000 TUPLTYPE WIDTH ENDHDR RGB";

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    picture.write_to(&mut out, format).unwrap();
    out.into_inner()
}

/// A chunk of a PNG file.
fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [name, data].concat();
    let mut crc = Crc::new();
    crc.update(&body);
    [&(data.len() as u32).to_be_bytes()[..], &body, &crc.sum().to_be_bytes()].concat()
}

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Makes the checksums of a PNG file's chunks right again: harm that they give away is not looked at any further.
fn mend_png(bytes: &mut [u8]) {
    let mut at = PNG_SIGNATURE.len();
    while let Some(head) = bytes.get(at..at + 8) {
        let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let end = at + 8 + len;
        if end + 4 > bytes.len() {
            break;
        }
        let mut crc = Crc::new();
        crc.update(&bytes[at + 4..end]);
        bytes[end..end + 4].copy_from_slice(&crc.sum().to_be_bytes());
        at = end + 4;
    }
}

/// PNG with what the `image` crate does not write: interlacing and orientation; and a palette with transparency.
fn hand_made_png(palette: bool) -> Vec<u8> {
    let mut header = vec![0, 0, 0, 8, 0, 0, 0, 8];
    header.extend(if palette { [4, 3, 0, 0, 0] } else { [8, 0, 0, 0, 1] });
    // A palette: rows of a filter byte and 8 half bytes. Else the seven passes, 79 bytes with their filters.
    let rows: Vec<u8> = if palette { [0, 0x01, 0x23, 0x10, 0x32].repeat(8) } else { vec![0; 79] };
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&rows).unwrap();
    let data = chunk(b"IDAT", &packed.finish().unwrap());
    let between = if palette {
        [chunk(b"PLTE", &noise(1, 12)), chunk(b"tRNS", &[255, 128])].concat()
    } else {
        chunk(b"eXIf", TIFF_TURNED)
    };
    [PNG_SIGNATURE, &chunk(b"IHDR", &header), &between, &data, &chunk(b"IEND", b"")].concat()
}

/// An EXIF block of one entry: orientation 6, a quarter turn.
const TIFF_TURNED: &[u8] = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";

/// BMP packed by run lengths.
fn hand_made_bmp() -> Vec<u8> {
    let mut runs = [8, 1, 0, 0].repeat(7);
    runs.extend([3, 0, 0, 3, 1, 0, 1, 0, 2, 1, 0, 1]); // a run, three as they are, a run, the end
    let mut bytes = b"BM".to_vec();
    let offset = 14 + 40 + 8;
    for word in [offset + runs.len() as u32, 0, offset, 40, 8, 8] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([1, 0, 8, 0]);
    for word in [1, runs.len() as u32, 0, 0, 2, 0, 0x0030_2010, 0x00f0_e0d0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(runs);
    bytes
}

/// Good pictures of 8x8 pixels in every format and form that is read, with their extension.
fn pictures() -> Vec<(&'static str, Vec<u8>)> {
    let mut rng = Rng::new(5);
    let rgba = RgbaImage::from_fn(8, 8, |x, y| {
        Rgba([(x * 32) as u8, (y * 32) as u8, rng.next_u64() as u8, 255 - (x * y) as u8])
    });
    let rgba = DynamicImage::ImageRgba8(rgba);
    let (rgb, grey) = (DynamicImage::ImageRgb8(rgba.to_rgb8()), DynamicImage::ImageLuma8(rgba.to_luma8()));
    let deep = DynamicImage::ImageLuma16(rgba.to_luma16());
    let mut all = Vec::new();
    for picture in [&rgb, &grey, &rgba, &deep] {
        all.push(("png", encoded(picture, ImageFormat::Png)));
    }
    all.push(("png", hand_made_png(false)));
    all.push(("png", hand_made_png(true)));
    let jpeg = encoded(&rgb, ImageFormat::Jpeg);
    let app1 = [b"\xff\xe1\0\x22Exif\0\0", TIFF_TURNED].concat();
    all.push(("jpg", [&jpeg[..2], &app1, &jpeg[2..]].concat()));
    all.push(("jpg", jpeg));
    all.push(("jpg", encoded(&grey, ImageFormat::Jpeg)));
    for picture in [&rgb, &grey, &rgba] {
        all.push(("bmp", encoded(picture, ImageFormat::Bmp)));
    }
    all.push(("bmp", hand_made_bmp()));
    for frames in [1, 2] {
        let mut gif = Vec::new();
        let frame = || Ok(image::Frame::new(rgba.to_rgba8()));
        GifEncoder::new(&mut gif).try_encode_frames((0..frames).map(|_| frame())).unwrap();
        all.push(("gif", gif));
    }
    for picture in [&rgb, &rgba] {
        all.push(("webp", encoded(picture, ImageFormat::WebP)));
    }
    for (picture, subtype) in [
        (&rgb, PnmSubtype::Pixmap(SampleEncoding::Binary)),
        (&rgb, PnmSubtype::Pixmap(SampleEncoding::Ascii)),
        (&grey, PnmSubtype::Graymap(SampleEncoding::Binary)),
        (&grey, PnmSubtype::Graymap(SampleEncoding::Ascii)),
        (&rgba, PnmSubtype::ArbitraryMap),
    ] {
        let mut pnm = Vec::new();
        picture.write_with_encoder(PnmEncoder::new(&mut pnm).with_subtype(subtype)).unwrap();
        all.push(("pnm", pnm));
    }
    // The content decides, not the name.
    for picture in [&rgb, &grey, &rgba, &deep] {
        all.push(("png", encoded(picture, ImageFormat::Tiff)));
    }
    all.extend(BY_OTHERS.iter().map(|(extension, bytes)| (*extension, unhex(bytes))));
    all.push(("pbm", [&b"P4\n# a comment\n8 8\n"[..], &noise(2, 8)].concat()));
    all.push(("pbm", [&b"P1 8 8\n"[..], &b"0 1 ".repeat(32)].concat()));
    all
}

/// What `image` does not write either, all of 8x8 pixels. By Pillow: a lossy WebP file, one with transparency, one with
/// two frames, and a progressive JPEG file; packed TIFF files; CMYK with restart markers. By cjpeg: components in separate scans. By cjxl: lossy and lossless.
const BY_OTHERS: [(&str, &str); 11] = [
    (
        "webp",
        "524946463c000000574542505650382030000000b001009d012a0800080005407c25b00274010ebb048000fedcefd55a\
         3e342084982b7ccb2fbf5c5f06c47652a4000000",
    ),
    (
        "webp",
        "524946467000000057454250565038580a00000010000000070000070000414c50481900000001b93244f43fa0a06d24\
         e4fd6b66060511133001129428ff07005650382030000000b001009d012a0800080005407c25b00274010ebb048000fe\
         dcefd55a3e342084982b7ccb2fbf5c5f06c47652a4000000",
    ),
    (
        "webp",
        "524946463601000057454250565038580a00000012000000070000070000414e494d06000000000000000000414e4d46\
         8200000000000000000007000007000032000002414c50481d0000000d1740906db3edfec6078988e00381a4cd58c6af\
         7f9b6788e87fc8ba010056503820440000005001009d012a0800080005407c25b000058c0000feddddd77fc77ff656f8\
         c658bffee14ff5c2b3fff0860f5447b272b1a990ebddcc80b6b7a331bf513eeb77f541d20000414e4d46800000000000\
         0000000007000007000032000002414c50481f0000000d1fa0906d0468f7589cbfd7614544d00f04d936929be4ee7986\
         88fec7c22b0056503820400000003001009d012a0800080005407c25b000037000ccffff9b8f6cf937fd8fed77f86fff\
         8e16d4f0dc7ee4e2495e5a8be01a9f26acd7b4373f75b3486fbdcbe45800",
    ),
    (
        "jpg",
        "ffd8ffe000104a46494600010100000100010000ffdb0043001b12141714111b1716171e1c1b2028422b28252528513a\
         3d3042605565645f555d5b6a7899816a7190735b5d85b586909ea3abadab6780bcc9baa6c799a8aba4ffc2000b080008\
         000801011100ffc40014000100000000000000000000000000000002ffda00080101000000013fffc400161000030000\
         000000000000000000000000000203ffda0008010100010502599fffc400141001000000000000000000000000000000\
         00ffda0008010100063f027fffc4001510010100000000000000000000000000000061ffda0008010100013f2193ffda\
         00080101000000107fffc4001510010100000000000000000000000000000031ffda0008010100013f1089ffd9",
    ),
    (
        "png",
        "49492a00e2000000803e184be67a4c34ed0abd5a6ef168153a9f1e0d9d86d1731ca420668900e866f0e524084a8381e1\
         605241a0180c01c520b2a8ecd0e13738992084f86836a33d08452c9219194ce4140c9660058a247e0d5e3fc805e04021\
         38190ea7524be39b6d0e27323b4fe4871aa02a4942041328c35941463d370bdca9455184dc384b129823e163b9dee25e\
         0399ab960925dccd7a280dc446493cd0c1241618aea28a50600753254507e530a06c3b5903532876f0ed7eefb9268a4f\
         039a9cc2005cb496013262c468f93697944f162814c84c193dd4c237d188c25080800a00000103000100000008000000\
         010103000100000008000000020103000300000060010000030103000100000005000000060103000100000002000000\
         1101040001000000080000001501030001000000030000001601030001000000080000001701040001000000da000000\
         1c010300010000000100000000000000080008000800",
    ),
    (
        "png",
        "49492a00d4000000789c01c0003ffff8c2becf931aed15f5d3ef2d059d9f3c36ec6d2ec75220cd240786de399208950e\
         0f160a90d0181807290b553b68e16ee2c9089f1a1ba37a2129c94346a6e42832b300b1893f0dbcff405e08089c191d9d\
         92be73db872764ed7f48e3a815498410998c6b50a33d6e2fe594aa616e38964ac13e2ceeefe2bc0ecdb9c149eecdf4a0\
         6e44c94f68c14858c5ea51943007a695287ea628363bb20d9987de3bbfef4ac19a52f073a76100b9d2b0134cb134f96d\
         5ea2f1c505644c32f7a623fa626150e06e5a46000a000001030001000000080000000101030001000000080000000201\
         030003000000520100000301030001000000080000000601030001000000020000001101040001000000080000001501\
         030001000000030000001601030001000000080000001701040001000000cb0000001c01030001000000010000000000\
         0000080008000800",
    ),
    (
        "png",
        "49492a00d000000017f8c2becf931aed15f5d3ef2d059d9f3c36ec6d2ec75220cd17240786de399208950e0f160a90d0\
         181807290b553b68e16e17e2c9089f1a1ba37a2129c94346a6e42832b300b1893f0dbc17ff405e08089c191d9d92be73\
         db872764ed7f48e3a81549841710998c6b50a33d6e2fe594aa616e38964ac13e2ceeefe2bc170ecdb9c149eecdf4a06e\
         44c94f68c14858c5ea51943007a61795287ea628363bb20d9987de3bbfef4ac19a52f073a7610017b9d2b0134cb134f9\
         6d5ea2f1c505644c32f7a623fa6261500a00000103000100000008000000010103000100000008000000020103000300\
         00004e010000030103000100000005800000060103000100000002000000110104000100000008000000150103000100\
         0000030000001601030001000000080000001701040001000000c80000001c0103000100000001000000000000000800\
         08000800",
    ),
    (
        "jpg",
        "ffd8ffee000e41646f626500640000000000ffdb004300281c1e231e19282321232d2b28303c64413c37373c7b585d49\
         64918099968f808c8aa0b4e6c3a0aadaad8a8cc8ffcbdaeef5ffffff9bc1fffffffaffe6fdfff8ffc000140800080008\
         044311004d11005911004b1100ffc400160001010100000000000000000000000000020305ffc4002210000103030305\
         0000000000000000000001020311002131122241516191b1f1ffdd00040001ffda000e0443004d0059004b00003f009b\
         a0bca952d4140f075047633cfb8f00801b87374a8a8498ea30acfca4db451adc2e2c819379b5f022d7ad9affd9",
    ),
    (
        "jpg",
        "ffd8ffe000104a46494600010100000100010000ffdb0083100028001c001e0023001e00190028002300210023002d00\
         2b00280030003c00640041003c00370037003c007b0058005d004900640091008000990096008f0080008c008a00a000\
         b400e600c300a000aa00da00ad008a008c00c8011100cb00da00ee00f5010201040102009b00c1011b012f011800fa01\
         2c00e600fd010200f8ffdb0043012b2d2d3c353c76414176f8a58ca5f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8\
         f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8ffc100110800080008030121000211010311\
         01ffc40014000100000000000000000000000000000002ffc4001c100100020105000000000000000000000001021131\
         00212281f1ffda0008010100003f00328dc79aada9be3a73e6bfffc40014010100000000000000000000000000000002\
         ffc40019110001050000000000000000000000000001001112c1d1ffda0008010211003f0060c436d2ffc40014010100\
         000000000000000000000000000000ffc400161101010100000000000000000000000000110001ffda0008010311003f\
         000eb7ffd9",
    ),
    (
        "png",
        "ff0a414040712108020100a0034b188b15007a60646b20447d00041fa70d382b882e08fc5d26cc1fb692a3a761115467\
         2ee8208a0c671fd1c4cae43297c129fccda8360ca3af8b06224a54756c361cb6a17f870913201d842925910c21792904\
         35d0f63c8c5ad23f9c1584b73f034425f6ad2c2115b50d7703283878e38db1e2d3003d03794f51d207c8257d0effa1e4\
         d96300fa90030cd3a5cc0eacc19b78961ad7d1fc938915df32be977f4c73d6ebed1d47b23152c2c218c07f9f31b13a7e\
         011eba64dc8474ba8d1944222226f0d1889c8c196497eaf97565fdf04593ce9586977d00a26a49705338eaa6c7131cc4\
         94676f5b25",
    ),
    (
        "png",
        "ff0a41404271210a01000068000038005800584a28318e4d440ac60cc809a04e120e4af0a40300e0c304a20100f000d1\
         571900800a9551c60d5ecef57cf9a1c362dac67586b6dab6b024114a2189940d02cac68ba8249102ad33576f00ecb720\
         825899c11b163a1044d910",
    ),
];

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// What is reserved for a frame on the word of its own header, before that is compared with the picture's. WebP: one of
/// 16383x16383 pixels in 3/2 bytes, and partitions of up to 16 MiB each. GIF: up to the reader's spare MiB
/// at four bytes for each pixel, and its place in the palette beside them. JPEG XL: tables and trees of its own, which its reader's
/// limit does not count. TIFF: the value of an entry.
fn frame(head: &[u8]) -> usize {
    match head {
        [b'R', b'I', b'F', b'F', ..] => 3 * (1 << 27) + (128 << 20),
        [b'G', b'I', b'F', ..] => 2 << 20,
        [b'I' | b'M', b'I' | b'M', ..] => 32 << 20,
        [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', ..] => 256 << 20,
        _ => 0,
    }
}

impl Pictures {
    fn new(dir: &Path) -> Self {
        let all = pictures();
        let first = all[0].1.clone();
        let (mut folders, mut names, mut seeds) = (Vec::new(), Vec::new(), Vec::new());
        for (extension, bytes) in all {
            let at = names.iter().position(|n| *n == extension).unwrap_or_else(|| {
                names.push(extension);
                let files = vec![("a.png".to_owned(), first.clone()), (format!("b.{extension}"), bytes.clone())];
                folders.push(Folder::new(dir.join(extension), files));
                names.len() - 1
            });
            seeds.push((at, bytes));
        }
        Pictures { folders, seeds, at: 0, fit: Fit::default() }
    }
}

impl Target for Pictures {
    fn seeds(&self) -> usize {
        self.seeds.len()
    }

    fn put(&mut self, seed: usize, rng: Option<&mut Rng>) -> Input {
        let (at, good) = &self.seeds[seed];
        self.fit = Fit::default();
        let bytes = match rng {
            None => good.clone(),
            Some(rng) => {
                self.fit = Fit {
                    size: [None, None, None, Some((8, 8)), Some((5, 3)), Some((64, 48)), Some((2, 2))][pick(rng, 7)],
                    channels: [None, None, Some(1), Some(3), Some(4)][pick(rng, 5)],
                    background: [Background::Auto, Background::Colour([200, 100, 0])][pick(rng, 2)],
                    filter: Filter::value_variants()[pick(rng, Filter::value_variants().len())],
                    shape: Shape::value_variants()[pick(rng, Shape::value_variants().len())],
                    ..Fit::default()
                };
                let other = &self.seeds[pick(rng, self.seeds.len())].1;
                let text = good.starts_with(b"P");
                let mut bytes = harm(rng, good, other, text.then_some(PNM_WORDS));
                if bytes.starts_with(PNG_SIGNATURE) && rng.below(4) > 0 {
                    mend_png(&mut bytes);
                }
                bytes
            }
        };
        self.at = *at;
        let path = self.folders[self.at].put(1, &bytes);
        // Buffers and tables of the decoders; what is packed inside a header (profiles, comments) may unpack.
        Input { path, bytes: bytes.len(), most: (4 << 20) + 1040 * bytes.len() }
    }

    fn read(&mut self) -> Result<()> {
        let fit = self.fit;
        let subset = Subset::of(&Settings::default());
        let options = ReadOptions { fit, subset, skip_broken: false, list_broken: false, cache: None };
        let (source, _) = PictureSet::of_folder(&self.folders[self.at].dir)?.read(&options)?;
        whole(&source);
        let (height, width) = self.fit.size.unwrap_or((8, 8));
        assert_eq!((source.train.height, source.train.width), (height, width));
        assert!(self.fit.channels.is_none_or(|c| c == source.train.channels));
        Ok(())
    }

    /// A picture that is scaled may take a few times what its header promises: as it is stored, as it is turned, without its
    /// transparency; a progressive JPEG also its coefficients; JPEG XL several planes of floats. A picture that is not scaled is 8x8
    /// or refused.
    fn promised(&self) -> usize {
        let path = self.folders[self.at].dir.join(&self.folders[self.at].files[1].0);
        let bytes = fs::read(&path).unwrap_or_default();
        let frame = frame(&bytes);
        let Some((h, w)) = self.fit.size else { return frame };
        let Ok(header) = picture::header(Cursor::new(&bytes)) else { return frame };
        let (height, width) = header.size;
        let each = if bytes.starts_with(b"\xff\x0a") || bytes.starts_with(b"\0\0\0\x0cJXL") { 64 } else { 24 };
        frame + each * height * width + 8 * width.max(height) * h.max(w)
    }
}

/// One file of a kind: its name, its good forms, and what is done with it.
struct Single {
    name: &'static str,
    folder: Folder,
    seeds: Vec<Vec<u8>>,
    words: Option<&'static str>,
    /// Makes what is harmed whole again where its format would give it away.
    mend: fn(&mut Rng, Vec<u8>) -> Vec<u8>,
    /// Bytes that each byte of the file may take.
    ratio: usize,
    read: fn(&Path) -> Result<()>,
}

impl Single {
    fn new(dir: &Path, name: &'static str, seeds: Vec<Vec<u8>>, read: fn(&Path) -> Result<()>) -> Self {
        let folder = Folder::new(dir.to_owned(), vec![(name.to_owned(), seeds[0].clone())]);
        Single { name, folder, seeds, words: None, mend: |_, bytes| bytes, ratio: 2 * 1040, read }
    }
}

impl Target for Single {
    fn seeds(&self) -> usize {
        self.seeds.len()
    }

    fn put(&mut self, seed: usize, rng: Option<&mut Rng>) -> Input {
        let bytes = match rng {
            None => self.seeds[seed].clone(),
            Some(rng) => {
                let other = &self.seeds[pick(rng, self.seeds.len())];
                let harmed = harm(rng, &self.seeds[seed], other, self.words);
                (self.mend)(rng, harmed)
            }
        };
        let at = self.folder.files.iter().position(|(name, _)| name == self.name).unwrap();
        let path = self.folder.put(at, &bytes);
        // Buffers: the longest record of a zip's list, 64 KiB of numbers as they are read, inflate.
        Input { path, bytes: bytes.len(), most: (4 << 20) + self.ratio * bytes.len() }
    }

    fn read(&mut self) -> Result<()> {
        (self.read)(&self.folder.dir.join(self.name))
    }
}

/// Every member of an archive, as a header and as a whole; an error of one does not keep the others from being read.
fn read_archive(path: &Path) -> Result<()> {
    assert!(archive::is_archive(path).is_ok());
    let mut first = None;
    for file in archive::list(path)? {
        assert!(file.name.is_relative() && file.name.components().all(|c| matches!(c, Component::Normal(_))));
        let mut start = Vec::new();
        let opened = file.open().and_then(|input| Ok(input.take(100).read_to_end(&mut start)?));
        let read = opened.and_then(|_| file.read()).map_err(|e| e.context(file.display().to_string()));
        match read {
            Ok(bytes) => assert!(bytes.len() as u64 == file.len && bytes.starts_with(&start)),
            Err(e) => first = first.or(Some(e)),
        }
    }
    first.map_or(Ok(()), Err)
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut out = DeflateEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// A zip of these members, every second one deflated.
fn zipped(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut list) = (Vec::new(), Vec::new());
    for (i, (name, bytes)) in members.iter().enumerate() {
        let mut crc = Crc::new();
        crc.update(bytes);
        let packed = if i % 2 == 1 { deflated(bytes) } else { bytes.clone() };
        let method = if i % 2 == 1 { 8u16 } else { 0 };
        let mut fields = [[0; 2], method.to_le_bytes(), [0; 2], [0; 2]].concat();
        for word in [crc.sum(), packed.len() as u32, bytes.len() as u32] {
            fields.extend(word.to_le_bytes());
        }
        fields.extend([name.len() as u8, 0, 0, 0]);
        let at = (out.len() as u32).to_le_bytes();
        list.extend([b"PK\x01\x02\x14\0\x14\0", &fields[..], &[0; 10], &at, name.as_bytes()].concat());
        out.extend([b"PK\x03\x04\x14\0", &fields[..], name.as_bytes(), &packed].concat());
    }
    let count = [members.len() as u8, 0];
    let (size, at) = ((list.len() as u32).to_le_bytes(), (out.len() as u32).to_le_bytes());
    out.extend([&list[..], b"PK\x05\x06\0\0\0\0", &count, &count, &size, &at, &[0, 0]].concat());
    out
}

/// A header of a tar file.
fn tar_header(name: &str, kind: u8, len: usize, link: &str) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{len:011o}\0").as_bytes());
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    mend_tar(&mut header);
    header
}

/// Makes the sums of all headers right again, or of what stands where one would.
fn mend_tar(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// A tar with plain files, a long name of GNU and one of pax, and links.
fn tarred() -> Vec<u8> {
    let body = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    };
    let long = format!("{}/c.png\0", "d".repeat(120));
    let pax = b"19 path=pax/p.png\n\n";
    [
        tar_header("a/one.png", b'0', 3, ""),
        body(b"one"),
        tar_header("././@LongLink", b'L', long.len(), ""),
        body(long.as_bytes()),
        tar_header("cut", b'0', 600, ""),
        body(&noise(3, 600)),
        tar_header("pax", b'x', 18, ""),
        body(&pax[..18]),
        tar_header("p", b'0', 1, ""),
        body(b"p"),
        tar_header("a/link.png", b'2', 0, "one.png"),
        tar_header("hard.png", b'1', 0, "a/one.png"),
        vec![0; 1024],
    ]
    .concat()
}

/// A `.npy` of this type and shape.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let text = format!(
        "{{'descr': '{descr}', 'fortran_order': {}, 'shape': ({shape}), }}\n",
        if shape.len().is_multiple_of(2) { "True" } else { "False" }
    );
    [b"\x93NUMPY\x01\0", &(text.len() as u16).to_le_bytes()[..], text.as_bytes(), data].concat()
}

fn floats(n: u32) -> Vec<u8> {
    (0..n).flat_map(|i| (i as f32 / n as f32).to_le_bytes()).collect()
}

fn npys() -> Vec<Vec<u8>> {
    vec![
        npy("|u1", "3, 4, 5", &noise(1, 60)),
        npy("<f4", "2, 4, 4, 3", &floats(96)),
        npy(">u2", "2, 1, 4, 5", &[0, 9].repeat(40)),
        npy("|b1", "2, 16", &[0, 1].repeat(16)),
        npy("<i8", "1, 4, 5", &[7, 0, 0, 0, 0, 0, 0, 0].repeat(20)),
    ]
}

fn npzs() -> Vec<Vec<u8>> {
    let labels = npy("<i8", "3,", &[1, 0, 0, 0, 0, 0, 0, 0].repeat(3));
    let (images, one_hot) = (npys().swap_remove(0), npy("|u1", "3, 2", &[1, 0, 0, 1, 1, 0]));
    vec![
        zipped(&[("images.npy", images.clone()), ("labels.npy", labels.clone())]),
        zipped(&[
            ("y_train.npy", labels.clone()),
            ("x_train.npy", images.clone()),
            ("y_test.npy", labels),
            ("x_test.npy", images.clone()),
        ]),
        zipped(&[("train_images.npy", images.clone()), ("train_labels.npy", one_hot), ("val_images.npy", images)]),
    ]
}

/// A batch of CIFAR-100 as Python 2 pickled it.
fn pickled(label: u8) -> Vec<u8> {
    let head = b"\x80\x02}q\x01(U\x0bfine_labelsq\x02]q\x03K";
    let array = b"aU\x04dataq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07(K\x01K\x01M\x00\x0c\x86\
        cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01\x87Rq\x09(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00";
    [&head[..], &[label], array, &noise(label.into(), 3072), b"tbu."].concat()
}

#[test]
fn zip_files() {
    let members =
        [("a/1.png", noise(1, 300)), ("a/2.png", vec![7; 5000]), ("b/3.png", Vec::new()), ("b/4.png", noise(2, 40))];
    fuzz(7, |dir| {
        Single::new(dir, "a.zip", vec![zipped(&members), zipped(&members[..1]), zipped(&members[1..3])], read_archive)
    });
}

#[test]
fn tar_files() {
    fuzz(8, |dir| Single {
        mend: |rng, mut bytes| {
            if rng.below(4) > 0 {
                mend_tar(&mut bytes);
            }
            if rng.below(8) == 0 { gzip(&bytes) } else { bytes }
        },
        ..Single::new(dir, "a.tar", vec![tarred(), tarred()[..1024].to_vec(), gzip(&tarred())], read_archive)
    });
}

#[test]
fn npy_files() {
    fuzz(9, |dir| Single { ratio: 8, ..Single::new(dir, "a.npy", npys(), |path| read_arrays(path).map(drop)) });
}

#[test]
fn npz_files() {
    fuzz(10, |dir| Single {
        // Half of them are arrays that are harmed and then packed, so that no checksum gives them away.
        mend: |rng, bytes| {
            if rng.below(2) == 0 {
                return bytes;
            }
            let [a, b] = [0, 1].map(|_| pick(rng, npys().len()));
            let words = "'descr': 'shape': ( ) , 3 <f8 |u1 >i2 True False";
            let images = harm(rng, &npys()[a], &npys()[b], Some(words));
            zipped(&[
                ("images.npy", images.clone()),
                ("labels.npy", npy("<f4", "3,", &floats(3))),
                ("test_x.npy", images),
            ])
        },
        ..Single::new(dir, "a.npz", npzs(), |path| read_arrays(path).map(drop))
    });
}

#[test]
fn pickles() {
    fuzz(11, |dir| {
        let names: Vec<u8> = (0..100u8).flat_map(|i| [b'U', 2, b'a' + i / 10, b'a' + i % 10]).collect();
        let meta = [b"\x80\x02}U\x10fine_label_names](", &names[..], b"es."].concat();
        let mut single = Single::new(dir, "train", vec![pickled(1), pickled(2)], |path| {
            // Named where it is the file that is wrong.
            read_arrays(path.parent().unwrap_or(path)).map(drop)
        });
        for (name, bytes) in [("test", pickled(3)), ("meta", meta)] {
            fs::write(dir.join(name), bytes).unwrap();
        }
        single.ratio = 512;
        single
    });
}

#[test]
fn csv_files() {
    let rows = |first: &str| format!("{first}3,0,255,7,9\n1,2,3,4,5\n0,9,9,9,9\n").into_bytes();
    let seeds = vec![
        rows(""),
        rows("label,a,b,c,d\n"),
        gzip(&rows("label,a,b,c,d\n")),
        b"a,b,c,d,y\n1,2,3,4,9\n".to_vec(),
        b"1,2,3,4,5,6,7,8,9,10,11,12,13\n".to_vec(),
    ];
    fuzz(12, |dir| Single {
        words: Some("label , \n \" 255 256 -1 0.0 1e3 nan ; y"),
        ..Single::new(dir, "a.csv", seeds, |path| read_arrays(path).map(drop))
    });
}

#[test]
fn idx_files() {
    fuzz(0, Idx::new);
}

#[test]
fn cifar_batches() {
    fuzz(1, Cifar::new);
}

#[test]
fn folders_of_pictures() {
    fuzz(2, Pictures::new);
}

// ---------------------------------------------------------------------------------------------------------------------
// The harness itself
// ---------------------------------------------------------------------------------------------------------------------

/// A reader of one's own choice.
struct Fake<F>(F);

impl<F: FnMut() -> Result<()>> Target for Fake<F> {
    fn seeds(&self) -> usize {
        1
    }

    fn put(&mut self, _: usize, _: Option<&mut Rng>) -> Input {
        Input { path: "/the/file".into(), bytes: 1, most: 1 << 20 }
    }

    fn read(&mut self) -> Result<()> {
        (self.0)()
    }
}

/// The kind of fault that is found in a reader, or none. All of them in one test, because they share a slot.
fn found(read: impl FnMut() -> Result<()>, slowest: Duration) -> Option<String> {
    let mut target = Fake(read);
    let input = target.put(0, None);
    examine(CONTROL, 1, &mut target, &input, slowest).answer.err().map(|fault| fault.kind)
}

/// A reader that accepts everything.
fn fine(mut read: impl FnMut()) -> impl FnMut() -> Result<()> {
    move || {
        read();
        Ok(())
    }
}

#[test]
fn the_harness_notices_bad_readers() {
    prepare();
    let long = Duration::from_secs(60);
    let take = |bytes: usize| drop(std::hint::black_box(vec![1u8; bytes]));
    assert_eq!(found(fine(|| ()), long), None);
    assert_eq!(found(|| Err(anyhow!("/the/file is bad")), long), None);
    assert_eq!(found(|| Err(anyhow!("bad").context("/the/file")), long), None);
    let kind = found(|| panic!("oh no"), long).unwrap();
    assert!(kind.contains("panicked at tests/broken_images.rs"), "{kind}");
    let index = found(fine(|| take([1usize][std::hint::black_box(7)])), long).unwrap();
    assert!(index.contains("panicked at tests/broken_images.rs"), "{index}");
    assert_eq!(found(|| Err(anyhow!("this is bad")), long).unwrap(), "nameless thisisbad");
    assert_eq!(found(|| Err(anyhow!("")), long).unwrap(), "silent");
    assert_eq!(found(fine(|| take(1 << 19)), long), None);
    assert_eq!(found(fine(|| take((1 << 20) + 1)), long).unwrap(), "memory, accepted");
    let refused = || {
        take(2 << 20);
        Err(anyhow!("/the/file is bad"))
    };
    assert_eq!(found(refused, long).unwrap(), "memory, refused");
    // Many small pieces count as one large one, what was given back does not.
    let many = || drop(std::hint::black_box((0..2000).map(|_| vec![0u8; 1000]).collect::<Vec<_>>()));
    assert_eq!(found(fine(many), long).unwrap(), "memory, accepted");
    assert_eq!(found(fine(|| (0..2000).for_each(|_| take(1000))), long), None);
    // A request beyond all bounds is turned down and held against the reader even if it bears that.
    let greedy = || assert!(Vec::<u8>::new().try_reserve(1 << 40).is_err());
    assert_eq!(found(fine(greedy), long).unwrap(), "memory, accepted");
    let slow = || std::thread::sleep(Duration::from_millis(30));
    assert_eq!(found(fine(slow), Duration::from_millis(5)).unwrap(), "slow");

    // Over many cases, faults of one kind are one, with the number of the first.
    let mut n = 0;
    let third = || {
        n += 1;
        assert!(n % 3 != 0, "the third");
        Ok(())
    };
    let tally = campaign(CONTROL, 10..20, &mut Fake(third));
    assert_eq!((tally.cases, tally.accepted, tally.faults.len()), (10, 7, 1));
    let (count, first, text) = &tally.faults.first_key_value().unwrap().1;
    assert_eq!((*count, *first), (3, 12));
    assert!(text.contains("the third"), "{text}");
}

#[test]
fn memory_is_counted_on_the_threads_of_rayon() {
    prepare();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let held = pool.install(|| {
        let start = NOW.get();
        PEAK.set(start);
        rayon::join(|| drop(std::hint::black_box(vec![1u8; 1 << 20])), || ());
        PEAK.get() - start
    });
    assert!(held >= 1 << 20, "{held}");
}

/// Not a test: what the next one runs in a process of its own.
#[test]
#[ignore = "ends the process"]
fn a_case_that_ends_the_process() {
    fn deep(n: u64) -> u64 {
        if std::hint::black_box(n) == 0 { 0 } else { deep(n - 1) + std::hint::black_box(n) }
    }
    prepare();
    let memory = std::env::var_os("GANVAE_FUZZ_MEMORY").is_some();
    let read = || {
        let n = if memory { 1usize << 40 } else { deep(u64::MAX) as usize };
        drop(std::hint::black_box(vec![1u8; n]));
        Ok(())
    };
    campaign(CONTROL, 41..42, &mut Fake(read));
}

#[test]
fn a_case_that_ends_the_process_is_named() {
    for memory in [false, true] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["a_case_that_ends_the_process", "--exact", "--ignored"]);
        if memory {
            child.env("GANVAE_FUZZ_MEMORY", "1");
        }
        let out = child.output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && said.contains("GANVAE_FUZZ_CASE=control:41 ended the process"), "{said}");
    }
}

#[test]
fn harm_is_a_function_of_the_number_and_leaves_little_as_it_was() {
    let good = "model = \"vae\"\nlr = 0.001\nepochs = 10\n".as_bytes();
    for words in [None, Some(CONFIG_WORDS)] {
        let all: Vec<Vec<u8>> =
            (0..2000).map(|n| harm(&mut generator(CONTROL, n), good, b"seed = 1\n", words)).collect();
        let again = harm(&mut generator(CONTROL, 7), good, b"seed = 1\n", words);
        assert_eq!(again, all[7]);
        let same = all.iter().filter(|bytes| bytes[..] == *good).count();
        let distinct = all.iter().collect::<std::collections::BTreeSet<_>>().len();
        assert!(same < 100 && distinct > 1700, "{same} unchanged, {distinct} distinct");
    }
    let mut png = hand_made_png(true);
    let right = png.clone();
    png[right.len() - 1] ^= 1;
    png[20] ^= 1;
    mend_png(&mut png);
    assert_eq!(png[right.len() - 12..], right[right.len() - 12..]);
    assert_ne!(png[29..33], right[29..33], "the header's checksum follows its harm");
}
