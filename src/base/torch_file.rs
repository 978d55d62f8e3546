//! Tensors in files of torch.save and torch.jit.save (.pt, .pth), read as data: nothing in the file is executed.
//!
//! Such a file is a zip of a pickle and of one entry for each storage. This reader knows the few calls in the pickle that make
//! tensors, and treats the result of any other one as an opaque object.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tch::{Kind, Tensor};
use zip::ZipArchive;

use super::pickle::{Id, Object, Pickle};
use super::small_file;

/// A pickle is at most as long, in bytes: a million tensors have room in it.
const MOST_PICKLE: u64 = 256 << 20;
/// Dictionaries within dictionaries.
const DEEPEST: usize = 64;
/// Entries of all dictionaries together.
const MOST_ENTRIES: usize = 1 << 20;
/// Bytes of a tensor's key.
const LONGEST_KEY: usize = 4096;
/// Dimensions of a tensor, as PyTorch limits them.
const MOST_SIDES: usize = 64;

/// A tensor of a file.
#[derive(Debug)]
pub struct FileTensor {
    /// Its key: the names of the dictionaries and modules that lead to it, joined by dots.
    pub key: String,
    /// The tensor on the CPU, which shares memory with others of its storage; none for a kind that weights do not have.
    pub tensor: Option<Tensor>,
    /// What it is, as PyTorch calls it.
    pub kind: String,
}

/// Every tensor of a file: of a state_dict, a checkpoint that holds one under `state_dict`, or the modules of TorchScript.
///
/// # Errors
/// When the file is no such zip or is damaged, and for files of PyTorch before 1.6.
pub fn read(path: &Path) -> Result<Vec<FileTensor>> {
    let (mut zip, mut left, folder) = open(path)?;
    let name = format!("{folder}data.pkl");
    if let Ok(order) = entry(&mut zip, &format!("{folder}byteorder"), 16) {
        ensure!(order == b"little", "its numbers are big-endian: save it again on a little-endian machine");
    }
    let pickle = entry(&mut zip, &name, MOST_PICKLE)?;
    let pickle = Pickle::read(&pickle).with_context(|| name.clone())?;
    let root = pickle.member(pickle.root, "state_dict").unwrap_or(pickle.root);
    let mut found = Vec::new();
    collect(&pickle, root, String::new(), DEEPEST, &mut 0, &mut found)?;
    let mut storages: HashMap<String, Tensor> = HashMap::new();
    let mut tensors = Vec::new();
    for (key, tensor) in found {
        let Stored { storage, offset, size, stride } = match tensor {
            Found::Tensor(stored) => stored,
            Found::Opaque(kind) => {
                tensors.push(FileTensor { key, tensor: None, kind });
                continue;
            }
        };
        let Some(kind) = kind_of(&storage.class) else {
            tensors.push(FileTensor { key, tensor: None, kind: storage.class.clone() });
            continue;
        };
        if !storages.contains_key(&storage.key) {
            let bytes = entry(&mut zip, &format!("{folder}data/{}", storage.key), left)?;
            left -= bytes.len() as u64;
            let count = bytes.len() / kind.elt_size_in_bytes();
            storages.insert(storage.key.clone(), Tensor::f_from_data_size(&bytes, &[count as i64], kind)?);
        }
        let flat = &storages[&storage.key];
        ensure!(flat.kind() == kind, "{key} is of another kind than its storage");
        let last = size.iter().zip(&stride).try_fold(offset, |last, (n, step)| {
            (*n >= 0 && *step >= 0).then_some(())?;
            last.checked_add(step.checked_mul((n - 1).max(0))?)
        });
        let fits = size.contains(&0) || last.is_some_and(|last| last < flat.numel() as i64);
        ensure!(offset >= 0 && size.len() == stride.len() && fits, "{key} reaches beyond its storage");
        tensors.push(FileTensor {
            key,
            tensor: Some(flat.f_as_strided(&size, &stride, offset)?),
            kind: format!("{kind:?}"),
        });
    }
    Ok(tensors)
}

/// The extra file `name` of a module of TorchScript, or else its attribute of type str of the same name up to the dot; none where it has
/// neither.
///
/// # Errors
/// When the file is no such zip or is damaged.
pub fn extra_file(path: &Path, name: &str) -> Result<Option<String>> {
    let (mut zip, length, folder) = open(path)?;
    let attribute = name.split('.').next().unwrap_or(name);
    let name = format!("{folder}extra/{name}");
    if !zip.file_names().any(|found| found == name) {
        let pickle = entry(&mut zip, &format!("{folder}data.pkl"), MOST_PICKLE)?;
        let pickle = Pickle::read(&pickle).with_context(|| format!("{folder}data.pkl"))?;
        return Ok(pickle.member(pickle.root, attribute).and_then(|id| pickle.text(id)).map(|text| text.into_owned()));
    }
    Ok(Some(String::from_utf8(entry(&mut zip, &name, length)?).with_context(|| format!("{name} is damaged"))?))
}

/// The zip, its length, and the folder in it that holds everything.
fn open(path: &Path) -> Result<(ZipArchive<File>, u64, String)> {
    let file = small_file::open(path).context("the file could not be opened")?;
    // Entries are not compressed: all of them together are no longer than the file.
    let length = file.metadata().context("the file could not be read")?.len();
    let zip = ZipArchive::new(file).map_err(|e| {
        anyhow::anyhow!(
            "not a file of torch.save or torch.jit.save ({e}); one of PyTorch before 1.6 must be saved again by a newer PyTorch"
        )
    })?;
    let name = zip.file_names().find(|name| name.ends_with("/data.pkl") && name.matches('/').count() == 1);
    let folder = name.context("it holds no data.pkl, so no weights")?.trim_end_matches("data.pkl").to_owned();
    Ok((zip, length, folder))
}

/// An entry of the zip, at most this long.
fn entry(zip: &mut ZipArchive<File>, name: &str, most: u64) -> Result<Vec<u8>> {
    let entry = zip.by_name(name).with_context(|| format!("{name} could not be read"))?;
    ensure!(entry.size() <= most, "{name} is {} bytes long, at most {most} are wanted", entry.size());
    ensure!(entry.compression() == zip::CompressionMethod::Stored, "{name} is compressed, which PyTorch never does");
    let mut bytes = Vec::new();
    entry.take(most).read_to_end(&mut bytes).with_context(|| format!("{name} could not be read"))?;
    Ok(bytes)
}

/// The kind of a typed storage; none for one that tch has no name for.
fn kind_of(class: &str) -> Option<Kind> {
    Some(match class.strip_suffix("Storage")? {
        "Float" => Kind::Float,
        "Double" => Kind::Double,
        "Half" => Kind::Half,
        "BFloat16" => Kind::BFloat16,
        "Long" => Kind::Int64,
        "Int" => Kind::Int,
        "Short" => Kind::Int16,
        "Char" => Kind::Int8,
        "Byte" => Kind::Uint8,
        "Bool" => Kind::Bool,
        _ => return None,
    })
}

/// Where a tensor's numbers are.
#[derive(Debug)]
struct Storage {
    /// `FloatStorage`.
    class: String,
    key: String,
}

/// A tensor before its storage is read.
#[derive(Debug)]
struct Stored {
    storage: Storage,
    offset: i64,
    size: Vec<i64>,
    stride: Vec<i64>,
}

#[derive(Debug)]
enum Found {
    Tensor(Stored),
    /// A tensor that this reader cannot make: the name of the function that would.
    Opaque(String),
}

/// `('storage', FloatStorage, '0', 'cpu', 12)`.
fn storage(pickle: &Pickle, id: Id) -> Result<Storage> {
    let Object::Persistent(id) = *pickle.get(id) else { bail!("a tensor has no storage") };
    let [_, class, key, ..] = pickle.parts(id) else { bail!("it refers to an object that is not a storage") };
    let Object::Global(class) = pickle.get(*class) else { bail!("it refers to an object that is not a storage") };
    let key = pickle.text(*key).context("it uses an object that is not text as the name of a storage")?;
    ensure!(key.len() <= LONGEST_KEY, "the name of a storage has {} bytes", key.len());
    Ok(Storage { class: class.rsplit('.').next().unwrap_or_default().to_owned(), key: key.into_owned() })
}

/// The tensor that a call makes; none for another call.
fn tensor(pickle: &Pickle, function: &str, arguments: &[Id]) -> Result<Option<Found>> {
    Ok(match (function, arguments) {
        ("torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor", [from, offset, size, stride, ..]) => {
            let Object::Int(offset) = *pickle.get(*offset) else { bail!("an offset is no whole number") };
            // A pickle may use one long tuple a million times.
            let sides = pickle.parts(*size).len().max(pickle.parts(*stride).len());
            ensure!(sides <= MOST_SIDES, "a tensor has {sides} dimensions, at most {MOST_SIDES} are possible");
            let (size, stride) = (pickle.ints(*size)?, pickle.ints(*stride)?);
            Some(Found::Tensor(Stored { storage: storage(pickle, *from)?, offset, size, stride }))
        }
        (other, _) if other.starts_with("torch.") && other.contains("_rebuild_") => {
            let short = other.rsplit('.').next().unwrap_or(other).trim_start_matches("_rebuild_");
            Some(Found::Opaque(short.to_owned()))
        }
        _ => None,
    })
}

/// Adds every tensor below an object with its key.
fn collect(
    pickle: &Pickle,
    id: Id,
    key: String,
    deep: usize,
    seen: &mut usize,
    found: &mut Vec<(String, Found)>,
) -> Result<()> {
    // An object may stand in many places, and within itself.
    *seen += 1;
    ensure!(*seen <= MOST_ENTRIES && key.len() <= LONGEST_KEY, "it holds more entries than any model has");
    if deep == 0 {
        return Ok(());
    }
    if let Object::Dict(all) = pickle.get(id) {
        for (name, value) in all {
            if let Object::Text(name) = pickle.get(*name) {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                collect(pickle, *value, key, deep - 1, seen, found)?;
            }
        }
    }
    match pickle.call(id) {
        Some((
            "torch._utils._rebuild_parameter"
            | "torch._utils._rebuild_parameter_with_state"
            | "torch.jit._pickle.restore_type_tag",
            [inner, ..],
            _,
        )) => collect(pickle, *inner, key, deep - 1, seen, found),
        Some((function, arguments, state)) => match (tensor(pickle, function, arguments)?, state) {
            (Some(tensor), _) => {
                found.push((key, tensor));
                Ok(())
            }
            (None, Some(state)) => collect(pickle, state, key, deep - 1, seen, found),
            (None, None) => Ok(()),
        },
        None => Ok(()),
    }
}
