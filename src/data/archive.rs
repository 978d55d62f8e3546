//! Archives of files, read in place: zip and tar. Nothing is unpacked to disk, and a member's name is only a name.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::bufread::MultiGzDecoder;
use flate2::read::DeflateDecoder;
use rawzip::{CompressionMethod, ReaderAt, ZipArchive, ZipArchiveEntryWayfinder, ZipLocator};

use super::files::{DataFile, Input};
use crate::base::small_file;

/// A .tar.gz is one stream without places to start reading at, so all of it is unpacked into memory: at most this many bytes.
const MOST_UNPACKED: u64 = 1 << 30;
/// An upper bound of the compression ratio of deflate, which is 1032: a header that claims more is wrong.
pub(super) const MAX_RATIO: u64 = 1040;
/// Bytes of a block of a tar file.
const BLOCK: u64 = 512;

const AGAIN: &str = "the file is incomplete or damaged, so fetch or pack it again";

/// An open archive, or one in memory. Any number of threads may read at any place.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    len: u64,
    /// Time of modification in nanoseconds.
    modified: u64,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    File(File),
    Memory(Vec<u8>),
}

impl ReaderAt for Store {
    fn read_at(&self, to: &mut [u8], at: u64) -> io::Result<usize> {
        match &self.bytes {
            // An offset beyond what the system knows is beyond the end of every file.
            Bytes::File(_) if at >= self.len => Ok(0),
            Bytes::File(file) => file.read_at(to, at),
            Bytes::Memory(all) => (&all[usize::try_from(at).unwrap_or(usize::MAX).min(all.len())..]).read(to),
        }
    }
}

/// A part of an archive.
struct Section<'a> {
    store: &'a Store,
    start: u64,
    at: u64,
    end: u64,
}

impl<'a> Section<'a> {
    fn new(store: &'a Store, start: u64, len: u64) -> Self {
        Section { store, start, at: start, end: start.saturating_add(len) }
    }
}

impl Read for Section<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(to.len());
        let n = self.store.read_at(&mut to[..most], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Section<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(n) => self.start.checked_add(n),
            SeekFrom::Current(n) => self.at.checked_add_signed(n),
            SeekFrom::End(n) => self.end.checked_add_signed(n),
        };
        self.at = at.filter(|at| *at >= self.start).ok_or_else(|| io::Error::other("a place before the start"))?;
        Ok(self.at - self.start)
    }
}

/// Where the bytes of a member are.
#[derive(Clone, Debug)]
pub(super) enum Member {
    /// As they are, in a tar file: start and length.
    Plain(Arc<Archive>, u64, u64),
    /// In a zip file.
    Zip(Arc<Archive>, ZipArchiveEntryWayfinder, CompressionMethod),
    /// Cannot be read: why, and what to do.
    Unreadable(Arc<Archive>, String),
}

/// An archive with what its format needs.
#[derive(Debug)]
pub(super) enum Archive {
    Tar(Store),
    Zip(ZipArchive<Store>),
}

impl Archive {
    fn store(&self) -> &Store {
        match self {
            Archive::Tar(store) => store,
            Archive::Zip(zip) => zip.get_ref(),
        }
    }
}

impl Member {
    /// The file of the archive.
    pub(super) fn archive(&self) -> &Path {
        let (Member::Plain(archive, ..) | Member::Zip(archive, ..) | Member::Unreadable(archive, _)) = self;
        &archive.store().path
    }

    /// Its bytes from the start, unpacked. At the end of a zip member its length and checksum are verified.
    ///
    /// # Errors
    /// Why it cannot be read, as a phrase.
    pub(super) fn stream(&self) -> Result<Box<dyn Read + '_>> {
        match self {
            Member::Plain(archive, start, len) => Ok(Box::new(Section::new(archive.store(), *start, *len))),
            Member::Unreadable(_, why) => bail!("{why}"),
            Member::Zip(archive, entry, method) => {
                let (packed, len) = (entry.compressed_size_hint(), entry.uncompressed_size_hint());
                let most = if *method == CompressionMethod::STORE { packed } else { packed.saturating_mul(MAX_RATIO) };
                ensure!(len <= most, "it claims {len} bytes, which its {packed} packed bytes cannot hold: {AGAIN}");
                let entry = zip_entry(archive, *entry)?;
                let (packed, at) = (entry.reader(), entry.compressed_data_range().0);
                let inner: Box<dyn Read + '_> = match *method {
                    CompressionMethod::STORE => Box::new(packed),
                    _ => Box::new(DeflateDecoder::new(packed)),
                };
                Ok(Box::new(Explained { inner: entry.verifying_reader(inner), at }))
            }
        }
    }

    /// Opens it for its first bytes. A packed member is unpacked at once.
    ///
    /// # Errors
    /// As [`Member::stream`].
    pub(super) fn open(&self) -> Result<Box<dyn Input + '_>> {
        match self {
            Member::Plain(archive, start, len) => {
                Ok(Box::new(BufReader::new(Section::new(archive.store(), *start, *len))))
            }
            Member::Zip(archive, entry, CompressionMethod::STORE) => {
                let (start, end) = zip_entry(archive, *entry)?.compressed_data_range();
                Ok(Box::new(BufReader::new(Section::new(archive.store(), start, end - start))))
            }
            _ => {
                let mut bytes = Vec::new();
                self.stream()?.read_to_end(&mut bytes)?;
                Ok(Box::new(Cursor::new(bytes)))
            }
        }
    }
}

/// The place of a zip member's data.
fn zip_entry(archive: &Archive, entry: ZipArchiveEntryWayfinder) -> Result<rawzip::ZipEntry<'_, Store>> {
    let Archive::Zip(zip) = archive else { bail!("it is not in a zip file") };
    let entry = zip.get_entry(entry).map_err(|e| anyhow!("its header in the archive cannot be read ({e}): {AGAIN}"))?;
    let (end, len) = (entry.compressed_data_range().1, zip.get_ref().len);
    ensure!(end <= len, "its data should end at byte {end}, but the archive has {len} bytes: {AGAIN}");
    Ok(entry)
}

/// Adds the place in the archive to what goes wrong.
struct Explained<R> {
    inner: R,
    at: u64,
}

impl<R: Read> Read for Explained<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let explain = |e: io::Error| {
            let text = format!("its data at byte {} of the archive is damaged ({e}): {AGAIN}", self.at);
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        self.inner.read(to).map_err(explain)
    }
}

/// The format of an archive, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Zip,
    Tar,
}

impl Format {
    fn of(start: &[u8]) -> Option<Self> {
        if [&b"PK\x03\x04"[..], b"PK\x05\x06", b"PK\x06\x06"].iter().any(|magic| start.starts_with(magic)) {
            return Some(Format::Zip);
        }
        let header = start.get(..BLOCK as usize)?;
        // The sum of a header's bytes, with blanks in place of the sum itself: old tars have no other mark.
        let octal = std::str::from_utf8(&header[148..156]).ok()?.trim_matches(['\0', ' ']);
        let sum = u32::from_str_radix(octal, 8).ok()?;
        let bytes = header.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) });
        (sum == bytes.sum::<u32>()).then_some(Format::Tar)
    }
}

/// The first bytes of a file, at most `len`; those of the unpacked data of a gzip file, and whether it is one.
///
/// # Errors
/// The system's; when it is no regular file.
pub(super) fn start_of(path: &Path, len: u64) -> Result<(Vec<u8>, bool)> {
    let read = || -> io::Result<(Vec<u8>, bool)> {
        let mut file = BufReader::new(small_file::open(path)?);
        let gzip = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let mut start = Vec::new();
        match gzip {
            // A damaged one is reported by who reads it.
            true => drop(MultiGzDecoder::new(file).take(len).read_to_end(&mut start)),
            false => drop(file.take(len).read_to_end(&mut start)?),
        }
        Ok((start, gzip))
    };
    read().with_context(|| format!("{} cannot be read", path.display()))
}

/// Whether a file is a zip, a tar, or a tar packed by gzip, by its content.
///
/// # Errors
/// When the file cannot be read.
pub fn is_archive(path: &Path) -> Result<bool> {
    let (start, gzip) = start_of(path, BLOCK)?;
    let format = Format::of(&start);
    Ok(format == Some(Format::Tar) || format == Some(Format::Zip) && !gzip)
}

/// The files in a zip or tar archive, in its order. A tar that is packed as a whole (.tar.gz) is unpacked into memory, at most 1 GiB.
///
/// *Names* are paths below the archive: empty parts, `.`, `..`, a leading `/` and a drive letter are left out, and in zip files a
/// backslash separates as well. Of two members with one name the last is read, as unpacking would give it. Links inside of a tar are
/// the files that they point to. Folders, pipes and devices are left out.
///
/// A member that cannot be read (encrypted, packed by another method than deflate, a link out of the archive, a sparse file) fails when
/// it is read, because it may be none that is wanted.
///
/// # Errors
/// When the file is no archive, or is damaged or cut off: names the byte.
pub fn list(path: &Path) -> Result<Vec<DataFile>> {
    let store = Store::open(path)?;
    let mut start = vec![0; BLOCK as usize];
    let n = Section::new(&store, 0, BLOCK)
        .read(&mut start)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let format = match (Format::of(&start[..n]), &store.bytes) {
        (Some(Format::Zip), Bytes::Memory(_)) | (None, _) => {
            bail!("{} is neither a zip nor a tar file: found {:02x?} at byte 0", path.display(), &start[..n.min(4)])
        }
        (Some(format), _) => format,
    };
    let mut members = Members::default();
    match format {
        Format::Zip => list_zip(store, &mut members)?,
        Format::Tar => list_tar(store, &mut members)?,
    }
    Ok(members.files)
}

impl Store {
    fn open(path: &Path) -> Result<Self> {
        let unreadable = || format!("{} cannot be read", path.display());
        let file = small_file::open(path).with_context(unreadable)?;
        let meta = file.metadata().with_context(unreadable)?;
        let modified = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        let modified = modified.map_or(0, |t| t.as_nanos() as u64);
        let mut magic = [0; 2];
        let n = file.read_at(&mut magic, 0).with_context(unreadable)?;
        let (len, bytes) = match magic[..n] == [0x1f, 0x8b] {
            false => (meta.len(), Bytes::File(file)),
            true => {
                let mut all = Vec::new();
                let packed = MultiGzDecoder::new(BufReader::with_capacity(1 << 18, file));
                packed.take(MOST_UNPACKED + 1).read_to_end(&mut all).map_err(|e| {
                    anyhow!(
                        "{}: found damaged data ({e}) at byte {} of the unpacked data; {AGAIN}",
                        path.display(),
                        all.len()
                    )
                })?;
                ensure!(
                    all.len() as u64 <= MOST_UNPACKED,
                    "{} unpacks to more than {MOST_UNPACKED} bytes, and a tar that is packed as a whole must fit into memory: \
                     unpack it with gunzip and give the .tar",
                    path.display()
                );
                (all.len() as u64, Bytes::Memory(all))
            }
        };
        Ok(Store { path: path.to_owned(), len, modified, bytes })
    }
}

/// Members by name.
#[derive(Default)]
struct Members {
    files: Vec<DataFile>,
    places: HashMap<PathBuf, usize>,
}

impl Members {
    fn put(&mut self, file: DataFile) {
        match self.places.entry(file.name.clone()) {
            Entry::Occupied(place) => self.files[*place.get()] = file,
            Entry::Vacant(place) => {
                place.insert(self.files.len());
                self.files.push(file);
            }
        }
    }
}

/// The name of a member; none if nothing is left of it.
fn name_of(raw: &[u8], separators: &[u8]) -> Option<PathBuf> {
    let mut name = PathBuf::new();
    for (i, part) in raw.split(|b| separators.contains(b)).enumerate() {
        let drive = i == 0 && matches!(part, [letter, b':'] if letter.is_ascii_alphabetic());
        if !(drive || matches!(part, b"" | b"." | b"..")) {
            name.push(OsString::from_vec(part.to_vec()));
        }
    }
    (!name.as_os_str().is_empty()).then_some(name)
}

fn list_zip(store: Store, members: &mut Members) -> Result<()> {
    let path = store.path.clone();
    let (path, len) = (path.display(), store.len);
    let mut buffer = vec![0; rawzip::MAX_CENTRAL_DIRECTORY_RECORD_SIZE];
    let zip = ZipLocator::new().locate_in_reader(store, &mut buffer, len).map_err(|(_, e)| {
        let at = e.eocd_offset().map_or_else(|| format!("up to its end at byte {len}"), |at| format!("at byte {at}"));
        anyhow!("{path}: found no list of members {at} ({e}), wanted that of a zip file; {AGAIN}")
    })?;
    let archive = Arc::new(Archive::Zip(zip));
    let Archive::Zip(zip) = &*archive else { return Ok(()) };
    let mut entries = zip.entries(&mut buffer);
    let mut at = zip.directory_offset();
    let damaged = |at: u64, e: &dyn std::fmt::Display| {
        anyhow!("{path}: found a damaged list of members after byte {at} ({e}); {AGAIN}")
    };
    let mut found = 0u64;
    while let Some(entry) = entries.next_entry().map_err(|e| damaged(at, &e))? {
        (at, found) = (entry.central_directory_offset(), found + 1);
        let raw = entry.file_path();
        let Some(name) = name_of(raw.as_bytes(), b"/\\").filter(|_| !entry.is_dir()) else { continue };
        let (method, finder) = (entry.compression_method(), entry.wayfinder());
        let readable = [CompressionMethod::STORE, CompressionMethod::DEFLATE].contains(&method);
        let unreadable = if entry.flags().is_encrypted() {
            Some("it is encrypted: unpack the archive with its password, and give the folder".to_owned())
        } else if !readable {
            let method = method.name().map_or_else(|| format!("method {}", method.as_u16()), str::to_owned);
            Some(format!("it is packed by {method}, and only deflate is read: pack the archive again with plain zip"))
        } else if entry.mode().is_symlink() {
            Some("it is a symbolic link: pack the archive again, with the file itself".to_owned())
        } else {
            None
        };
        let place = match unreadable {
            Some(why) => Member::Unreadable(archive.clone(), why),
            None => Member::Zip(archive.clone(), finder, method),
        };
        members.put(DataFile::member(name, finder.uncompressed_size_hint(), entry.crc32().into(), place));
    }
    // Without zip64 the end of the list counts them by 16 bits.
    let wanted = zip.entries_hint();
    if found != wanted && found & 0xffff != wanted {
        return Err(damaged(at, &format_args!("{found} members, and its end says {wanted}")));
    }
    Ok(())
}

fn list_tar(store: Store, members: &mut Members) -> Result<()> {
    let archive = Arc::new(Archive::Tar(store));
    let store = archive.store();
    let path = store.path.display();
    let unpacked = if matches!(store.bytes, Bytes::Memory(_)) { " of the unpacked data" } else { "" };
    let mut tar = tar::Archive::new(Section::new(store, 0, store.len));
    // Links to files that come later, too: name, target, and what the target is relative to.
    let mut links = Vec::new();
    let mut at = 0;
    let damaged =
        |at: u64, e: io::Error| anyhow!("{path}: found no header of a member at byte {at}{unpacked} ({e}); {AGAIN}");
    for entry in tar.entries_with_seek().map_err(|e| damaged(0, e))? {
        let entry = entry.map_err(|e| damaged(at, e))?;
        let (kind, start, len) = (entry.header().entry_type(), entry.raw_file_position(), entry.size());
        let sparse = kind.is_gnu_sparse();
        let end = if sparse { start } else { start.saturating_add(len) };
        let name = name_of(&entry.path_bytes(), b"/");
        ensure!(
            end <= store.len || !(kind.is_file() || kind.is_contiguous()),
            "{path}: found the end of the file at byte {}{unpacked}, wanted {end} bytes for {}; {AGAIN}",
            store.len,
            name.unwrap_or_default().display()
        );
        at = end.div_ceil(BLOCK).saturating_mul(BLOCK);
        let Some(name) = name else { continue };
        // What changes when its content does.
        let version = store.modified.wrapping_add(start);
        if kind.is_file() || kind.is_contiguous() {
            members.put(DataFile::member(name, len, version, Member::Plain(archive.clone(), start, len)));
        } else if sparse {
            let why = "it is stored as a sparse file: pack the archive again without tar's --sparse".to_owned();
            members.put(DataFile::member(name, len, version, Member::Unreadable(archive.clone(), why)));
        } else if kind.is_hard_link() || kind.is_symlink() {
            let target = entry.link_name_bytes().unwrap_or(Cow::Borrowed(b""));
            links.push((name, target.into_owned(), kind.is_symlink(), version));
        }
    }
    for (name, target, symbolic, version) in links {
        let folder = if symbolic { name.parent() } else { None };
        let file =
            resolved(folder, &target).and_then(|target| members.places.get(&target)).map(|i| members.files[*i].clone());
        let why =
            "it is a link to what is not a file of the archive: pack it again with tar's --dereference".to_owned();
        let unreadable = || DataFile::member(PathBuf::new(), 0, version, Member::Unreadable(archive.clone(), why));
        let mut file = file.unwrap_or_else(unreadable);
        file.name = name;
        members.put(file);
    }
    Ok(())
}

/// Where a link points: a path below the archive, or none outside of it.
fn resolved(folder: Option<&Path>, target: &[u8]) -> Option<PathBuf> {
    let mut path = folder.map(Path::to_owned).unwrap_or_default();
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                path.pop().then_some(())?;
            }
            _ => path.push(OsString::from_vec(part.to_vec())),
        }
    }
    Some(path)
}
