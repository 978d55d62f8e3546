//! Archives of pictures against what Python's zipfile and tarfile write, and damaged ones.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::python::stdlib;
use ganvae::data::files::DataFile;
use ganvae::data::{archive, shards};

fn text(e: anyhow::Error) -> String {
    format!("{e:#}")
}

/// Names and contents of the members.
fn contents(path: &Path) -> Vec<(String, Vec<u8>)> {
    let all = archive::list(path).unwrap_or_else(|e| panic!("{e:#}"));
    all.iter().map(|file| (name(file), file.read().unwrap_or_else(|e| panic!("{e:#}")))).collect()
}

fn name(file: &DataFile) -> String {
    file.name.display().to_string()
}

/// What member `i` holds in every archive of [`WRITE`].
fn body(i: usize) -> Vec<u8> {
    (0..i * 1000).map(|k| (k * 31 % 7) as u8).collect()
}

const WRITE: &str = r#"
import io, os, sys, tarfile, zipfile
body = lambda i: bytes(k * 31 % 7 for k in range(i * 1000))
def zip(name, **options):
    with zipfile.ZipFile(name, "w", **options) as z:
        for i in range(4):
            z.writestr(f"sets/{'é' if i == 3 else i}.png", body(i))
        z.mkdir("empty")
zip("stored.zip")
zip("deflated.zip", compression=zipfile.ZIP_DEFLATED)
zip("bzip2.zip", compression=zipfile.ZIP_BZIP2)
# Every size and offset in 64 bits.
with zipfile.ZipFile("zip64.zip", "w", compression=zipfile.ZIP_DEFLATED) as z:
    for i in range(4):
        with z.open(f"sets/{'é' if i == 3 else i}.png", "w", force_zip64=True) as f:
            f.write(body(i))
with zipfile.ZipFile("odd.zip", "w") as z:
    for n in ["../../a.png", "/b.png", "C:\\d\\e.png", "./f//g.png", "..", "twice.png"]:
        z.writestr(zipfile.ZipInfo(n), n)
    import warnings
    warnings.simplefilter("ignore")
    z.writestr("twice.png", "the second")
data = open("stored.zip", "rb").read()
open("prefixed.zip", "wb").write(data[:4] + b"x" * 1000 + data)
def tar(name, mode="w", **options):
    with tarfile.open(name, mode, **options) as t:
        for i in range(4):
            info = tarfile.TarInfo(f"sets/{'é' if i == 3 else i}.png")
            info.size = i * 1000
            t.addfile(info, io.BytesIO(body(i)))
        info = tarfile.TarInfo("empty"); info.type = tarfile.DIRTYPE; t.addfile(info)
tar("ustar.tar", format=tarfile.USTAR_FORMAT)
tar("gnu.tar", format=tarfile.GNU_FORMAT)
tar("pax.tar", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"})
tar("packed.tar.gz", "w:gz")
for name, format in [("long-gnu.tar", tarfile.GNU_FORMAT), ("long-pax.tar", tarfile.PAX_FORMAT)]:
    with tarfile.open(name, "w", format=format) as t:
        info = tarfile.TarInfo("d" * 150 + "/" + "n" * 150 + ".png"); info.size = 3
        t.addfile(info, io.BytesIO(b"abc"))
with tarfile.open("links.tar", "w") as t:
    def add(name, type=tarfile.REGTYPE, link="", data=b""):
        info = tarfile.TarInfo(name); info.type = type; info.linkname = link; info.size = len(data)
        t.addfile(info, io.BytesIO(data))
    add("d/soft.png", tarfile.SYMTYPE, "../real.png")
    add("real.png", data=b"real")
    add("hard.png", tarfile.LNKTYPE, "real.png")
    add("out.png", tarfile.SYMTYPE, "../../etc/passwd")
    add("pipe", tarfile.FIFOTYPE)
    add("../up.png", data=b"up")
    add("twice.png", data=b"1")
    add("twice.png", data=b"second")
"#;

fn written() -> Option<(tempfile::TempDir, PathBuf)> {
    let python = stdlib()?;
    let dir = tempfile::tempdir().unwrap();
    common::python::run(&python, WRITE, dir.path());
    let path = dir.path().to_owned();
    Some((dir, path))
}

#[test]
fn archives_of_python_are_read() {
    let Some((_dir, dir)) = written() else { return };
    let want: Vec<_> =
        ["0", "1", "2", "é"].iter().enumerate().map(|(i, n)| (format!("sets/{n}.png"), body(i))).collect();
    for file in
        ["stored.zip", "deflated.zip", "zip64.zip", "prefixed.zip", "ustar.tar", "gnu.tar", "pax.tar", "packed.tar.gz"]
    {
        let path = dir.join(file);
        assert!(archive::is_archive(&path).unwrap(), "{file}");
        assert_eq!(contents(&path), want, "{file}");
        let all = archive::list(&path).unwrap();
        assert_eq!(all[2].len, 2000);
        assert_eq!(all[2].display().to_string(), format!("{}/sets/2.png", path.display()));
        // Headers are read without the whole file; the versions tell members apart.
        let mut start = [0; 10];
        std::io::Read::read_exact(&mut all[2].open().unwrap(), &mut start).unwrap();
        assert_eq!(start, body(2)[..10], "{file}");
        assert_ne!(all[1].version, all[2].version, "{file}");
    }
    for file in ["long-gnu.tar", "long-pax.tar"] {
        let want = format!("{}/{}.png", "d".repeat(150), "n".repeat(150));
        assert_eq!(contents(&dir.join(file)), [(want, b"abc".to_vec())], "{file}");
    }
    // All threads at once.
    let all = archive::list(&dir.join("deflated.zip")).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..50).for_each(|k| assert_eq!(all[k % 4].read().unwrap(), body(k % 4))));
        }
    });
}

#[test]
fn names_stay_below_the_archive_and_links_inside() {
    let Some((_dir, dir)) = written() else { return };
    let names: Vec<_> = contents(&dir.join("odd.zip")).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a.png", "b.png", "d/e.png", "f/g.png", "twice.png"]);
    assert_eq!(contents(&dir.join("odd.zip"))[4].1, b"the second");
    let all = archive::list(&dir.join("links.tar")).unwrap();
    let read = |want: &str| all.iter().find(|file| name(file) == want).unwrap().read();
    for (name, want) in
        [("real.png", "real"), ("hard.png", "real"), ("d/soft.png", "real"), ("up.png", "up"), ("twice.png", "second")]
    {
        assert_eq!(read(name).unwrap(), want.as_bytes(), "{name}");
    }
    assert!(text(read("out.png").unwrap_err()).contains("a link to what is not a file of the archive: pack it again"));
    assert_eq!(all.len(), 6);
}

/// A zip of one member, by hand: method, flags, CRC, packed bytes, the length that is claimed.
fn zip_of(method: u16, flags: u16, crc: u32, packed: &[u8], len: u32) -> Vec<u8> {
    let fields = |out: &mut Vec<u8>| {
        out.extend([flags.to_le_bytes(), method.to_le_bytes(), [0; 2], [0; 2]].concat());
        out.extend([crc.to_le_bytes(), (packed.len() as u32).to_le_bytes(), len.to_le_bytes()].concat());
        out.extend([5, 0, 0, 0]);
    };
    let mut out = b"PK\x03\x04\x14\0".to_vec();
    fields(&mut out);
    out.extend(b"a.png");
    out.extend(packed);
    let directory = out.len() as u32;
    out.extend(b"PK\x01\x02\x14\0\x14\0");
    fields(&mut out);
    out.extend([0; 14]);
    out.extend(b"a.png");
    let size = out.len() as u32 - directory;
    out.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    out.extend([size.to_le_bytes(), directory.to_le_bytes()].concat());
    out.extend([0, 0]);
    out
}

#[test]
fn bad_members_are_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.zip");
    let of = |bytes: Vec<u8>| {
        fs::write(&path, bytes).unwrap();
        archive::list(&path).unwrap()[0].read()
    };
    let crc = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    };
    let deflated = |bytes: &[u8]| {
        use std::io::Write;
        let mut out = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    assert_eq!(of(zip_of(0, 0, crc(b"abc"), b"abc", 3)).unwrap(), b"abc");
    let zeros = vec![0; 1 << 20];
    let packed = deflated(&zeros);
    let noise: Vec<u8> = (0..1000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    assert_eq!(of(zip_of(8, 0, crc(&zeros), &packed, 1 << 20)).unwrap(), zeros);
    for (bytes, parts) in [
        (zip_of(0, 0, crc(b"abd"), b"abc", 3), "byte 35 of the archive is damaged .. checksum .. fetch or pack"),
        (zip_of(8, 0, crc(&zeros), &packed, 1000), "is damaged (Invalid"),
        (zip_of(8, 0, crc(&zeros), &packed, (1 << 20) + 1), "is damaged (Invalid size"),
        (zip_of(8, 0, crc(&noise), &deflated(&noise)[..400], 1000), "byte 35 of the archive is damaged"),
        // Bombs: more than deflate can hold, and more than a picture may have.
        (zip_of(8, 0, 0, &packed, 100 << 20), "claims 104857600 bytes, which its"),
        (zip_of(0, 0, 0, b"abc", 4), "claims 4 bytes, which its 3 packed bytes cannot hold"),
        (zip_of(8, 0, 0, &packed, 300 << 20), "has 314572800 bytes, more than 268435456"),
        (zip_of(0, 1, 0, b"abc", 3), "is encrypted: unpack the archive with its password"),
        (zip_of(12, 0, 0, b"abc", 3), "packed by .. only deflate is read: pack"),
        (zip_of(77, 0, 0, b"abc", 3), "packed by method 77, and only deflate"),
    ] {
        let text = text(of(bytes).unwrap_err());
        assert!(parts.split(" .. ").all(|part| text.contains(part)), "{text}");
    }
}

#[test]
fn damaged_archives_are_named_with_the_byte() {
    let Some((_dir, dir)) = written() else { return };
    let path = dir.join("bad");
    let error = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let text = text(archive::list(&path).map(|all| all.len()).unwrap_err());
        assert!(text.contains(&*path.to_string_lossy()) && !text.contains('\n'), "{text}");
        text
    };
    let has = |text: &str, parts: &str| assert!(parts.split(" .. ").all(|part| text.contains(part)), "{parts}: {text}");
    let zip = fs::read(dir.join("stored.zip")).unwrap();
    has(&error(&zip[..zip.len() - 30]), &format!("no list of members up to its end at byte {}", zip.len() - 30));
    let mut bad = zip.clone();
    let end = zip.len() - 22;
    let list = u32::from_le_bytes(zip[end + 16..end + 20].try_into().unwrap()) as usize;
    bad[list + 46 + 10] ^= 1; // after the first name, where the second entry starts
    has(&error(&bad), &format!("a damaged list of members after byte {list}"));
    bad = zip.clone();
    (bad[end + 8], bad[end + 10]) = (6, 6); // the number of members
    has(&error(&bad), "5 members, and its end says 6");
    // A tar of 500-byte names and bodies: the third member's header is at byte 512 + 512 + 1024 + ...
    let tar = fs::read(dir.join("ustar.tar")).unwrap();
    let third = 512 + (512 + 1024);
    bad = tar.clone();
    bad[third] ^= 1;
    has(&error(&bad), &format!("no header of a member at byte {third} .. checksum .. fetch or pack it again"));
    has(
        &error(&tar[..third + 700]),
        &format!("end of the file at byte {}, wanted {} bytes for sets/2.png", third + 700, third + 512 + 2000),
    );
    has(&error(&tar[..third + 100]), &format!("no header of a member at byte {third}"));
    let packed = fs::read(dir.join("packed.tar.gz")).unwrap();
    has(&error(&packed[..packed.len() / 2]), "damaged data .. of the unpacked data");
    has(&error(b"plain text"), "neither a zip nor a tar file: found [70, 6c");
    has(&error(b""), "neither a zip nor a tar");
    has(&text(archive::list(&dir).unwrap_err()), "it is a folder");
}

const SHARDS: &str = r#"
import io, tarfile
png = bytes.fromhex("89504e470d0a1a0a") + b"rest"
def shard(name, members):
    with tarfile.open(name, "w") as t:
        for n, data in members:
            info = tarfile.TarInfo(n); info.size = len(data); t.addfile(info, io.BytesIO(data))
sample = lambda k, c: [(f"{k}.cls", str(c).encode()), (f"{k}.img", png + k.encode()), (f"{k}.json", b"{}")]
shard("train-008.tar", sample("b/0001", 3) + sample("b/0000", 0))
shard("train-009.tar", [("0001.png", png), ("0001.cls", b" 12\n"), ("0002.txt", b"no picture")])
shard("bare.tar", [("1.png", png), ("2.v2.png", png)])
shard("mixed.tar", sample("1", 0) + [("2.png", png)])
shard("two.tar", [("1.png", png), ("1.seg.png", png)])
shard("bad.tar", [("1.png", png), ("1.cls", b"cat")])
shard("none.tar", [("1.txt", b"x")])
"#;

#[test]
fn shards_give_pictures_and_classes_in_their_order() {
    let Some(python) = stdlib() else { return };
    let dir = tempfile::tempdir().unwrap();
    common::python::run(&python, SHARDS, dir.path());
    let at = |name: &str| dir.path().join(name);
    let paths = shards::paths(&at("train-{008..009}.tar")).unwrap().unwrap();
    assert_eq!(paths, [at("train-008.tar"), at("train-009.tar")]);
    let (files, labels) = shards::list(&paths).unwrap();
    let names: Vec<_> = files.iter().map(name).collect();
    assert_eq!(names, ["train-008.tar/b/0001.img", "train-008.tar/b/0000.img", "train-009.tar/0001.png"]);
    assert_eq!(labels.unwrap(), [3, 0, 12]);
    assert!(files[0].read().unwrap().ends_with(b"restb/0001"));
    assert!(files[0].display().to_string().ends_with("train-008.tar/b/0001.img"), "{}", files[0].display());
    assert!(shards::list(&[at("bare.tar")]).unwrap().1.is_none());
    let error = |name: &str| text(shards::list(&[at(name)]).unwrap_err());
    assert!(
        error("mixed.tar").contains("mixed.tar/2.png has no class, and 1 others have one"),
        "{}",
        error("mixed.tar")
    );
    assert!(error("two.tar").contains("1.seg.png is a second picture beside"), "{}", error("two.tar"));
    assert!(error("bad.tar").contains("1.cls: found \"cat\", wanted the number of a class"), "{}", error("bad.tar"));
    assert!(error("none.tar").contains("there are no pictures"), "{}", error("none.tar"));
    let missing = text(shards::paths(&at("train-{008..010}.tar")).unwrap_err());
    assert!(missing.contains("it names 3 shards, and there is no") && missing.contains("train-010.tar"), "{missing}");
    // A folder of nothing but shards.
    assert_eq!(shards::paths(dir.path()).unwrap().unwrap().len(), 7);
    fs::write(at("more.txt"), "").unwrap();
    assert_eq!(shards::paths(dir.path()).unwrap(), None);
    assert_eq!(shards::paths(&at("train-008.tar")).unwrap(), None);
}
