//! Tensors in files of torch.save and torch.jit.save (.pt, .pth), read as data: nothing in the file is executed.
//!
//! Such a file is a zip of a pickle and of one entry for each storage. A pickle is a program for a stack machine that may call any
//! function of Python; this reader knows the handful of calls that make tensors, and takes every other one for an opaque object.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tch::{Kind, Tensor};
use zip::ZipArchive;

use super::small_file;

/// A pickle is at most as long, in bytes: a million tensors have room in it.
const MOST_PICKLE: u64 = 256 << 20;
/// Objects that a pickle may make.
const MOST_OBJECTS: usize = 1 << 24;
/// Dictionaries within dictionaries.
const DEEPEST: usize = 64;
/// Entries of all dictionaries together.
const MOST_ENTRIES: usize = 1 << 20;
/// Bytes of a tensor's key.
const LONGEST_KEY: usize = 4096;

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
    let (machine, root) = Machine::read(&pickle).with_context(|| name.clone())?;
    let root = machine.member(root, "state_dict").unwrap_or(root);
    let mut found = Vec::new();
    machine.collect(root, String::new(), DEEPEST, &mut 0, &mut found)?;
    let mut storages: HashMap<String, Tensor> = HashMap::new();
    let mut tensors = Vec::new();
    for (key, object) in found {
        let (storage, offset, size, stride) = match object {
            Object::Tensor { storage, offset, size, stride } => (storage, *offset, size, stride),
            Object::Opaque(kind) => {
                tensors.push(FileTensor { key, tensor: None, kind: kind.clone() });
                continue;
            }
            _ => continue,
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
        let last = size.iter().zip(stride).try_fold(offset, |last, (n, step)| {
            (*n >= 0 && *step >= 0).then_some(())?;
            last.checked_add(step.checked_mul((n - 1).max(0))?)
        });
        let fits = size.contains(&0) || last.is_some_and(|last| last < flat.numel() as i64);
        ensure!(offset >= 0 && size.len() == stride.len() && fits, "{key} reaches beyond its storage");
        tensors.push(FileTensor {
            key,
            tensor: Some(flat.f_as_strided(size, stride, offset)?),
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
        let (machine, root) = Machine::read(&pickle).with_context(|| format!("{folder}data.pkl"))?;
        let text = machine.member(root, attribute).map(|id| &machine.objects[id]);
        return Ok(text.and_then(|text| if let Object::Text(text) = text { Some(text.clone()) } else { None }));
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

/// Number of an object in the machine's memory.
type Id = usize;

#[derive(Clone, Debug)]
struct Storage {
    /// `FloatStorage`.
    class: String,
    key: String,
}

#[derive(Debug)]
enum Object {
    /// None, or a number that is no whole one.
    Nothing,
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A function or class.
    Global(String),
    Storage(Storage),
    Tensor {
        storage: Storage,
        offset: i64,
        size: Vec<i64>,
        stride: Vec<i64>,
    },
    /// A tensor that this reader cannot make: the name of the function that would.
    Opaque(String),
    /// An object of a class, with its state.
    Instance(Option<Id>),
}

/// The stack machine.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    objects: Vec<Object>,
    stack: Vec<Id>,
    marks: Vec<usize>,
}

impl<'a> Machine<'a> {
    /// The objects of a pickle, and the one that it is of.
    fn read(bytes: &'a [u8]) -> Result<(Self, Id)> {
        let mut machine = Machine { bytes, at: 0, objects: Vec::new(), stack: Vec::new(), marks: Vec::new() };
        let root = machine.run().with_context(|| format!("it is damaged at byte {}", machine.at))?;
        Ok((machine, root))
    }

    fn take(&mut self, n: usize) -> Result<&[u8]> {
        let part = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end)).context("it ends too early")?;
        self.at += n;
        Ok(part)
    }

    /// A number of this many bytes, the lowest first.
    fn unsigned(&mut self, bytes: usize) -> Result<usize> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte)))
    }

    fn text(&mut self, n: usize) -> Result<String> {
        Ok(String::from_utf8_lossy(self.take(n)?).into_owned())
    }

    /// Up to the end of the line.
    fn line(&mut self) -> Result<String> {
        let rest = &self.bytes[self.at..];
        let n = rest.iter().position(|b| *b == b'\n').context("it ends too early")?;
        let line = self.text(n)?;
        self.at += 1;
        Ok(line)
    }

    fn push(&mut self, object: Object) -> Result<()> {
        ensure!(self.objects.len() < MOST_OBJECTS, "it makes more than {MOST_OBJECTS} objects");
        self.objects.push(object);
        self.stack.push(self.objects.len() - 1);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        ensure!(self.marks.last().is_none_or(|mark| self.stack.len() > *mark), "it takes what is not there");
        self.stack.pop().context("it takes what is not there")
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().context("it takes what is not there")
    }

    fn since_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().context("it takes what is not there")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    /// Runs the program; gives the object that it makes.
    fn run(&mut self) -> Result<Id> {
        let mut memo: HashMap<usize, Id> = HashMap::new();
        loop {
            let op = self.take(1)?[0];
            match op {
                0x80 => drop(self.take(1)?), // PROTO
                0x95 => drop(self.take(8)?), // FRAME
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'N' | 0x88 | 0x89 => self.push(Object::Nothing)?,
                b'G' => {
                    self.take(8)?;
                    self.push(Object::Nothing)?;
                }
                b'J' | b'K' | b'M' | 0x8a => {
                    let n = match op {
                        b'J' => 4,
                        b'K' => 1,
                        b'M' => 2,
                        _ => self.unsigned(1)?,
                    };
                    let signed = matches!(op, b'J' | 0x8a);
                    let bytes = self.take(n)?;
                    ensure!(n <= 8, "it holds a number of {n} bytes");
                    let negative = signed && bytes.last().is_some_and(|b| b & 0x80 != 0);
                    let mut wide = [if negative { 0xff } else { 0 }; 8];
                    wide[..n].copy_from_slice(bytes);
                    self.push(Object::Int(i64::from_le_bytes(wide)))?;
                }
                b'X' | b'T' | b'B' | b'U' | b'C' | 0x8c => {
                    let n = self.unsigned(if b"XTB".contains(&op) { 4 } else { 1 })?;
                    let text = self.text(n)?;
                    self.push(Object::Text(text))?;
                }
                b'}' => self.push(Object::Dict(Vec::new()))?,
                b']' | 0x8f => self.push(Object::List(Vec::new()))?,
                b')' => self.push(Object::Tuple(Vec::new()))?,
                0x85..=0x87 => {
                    let n = usize::from(op - 0x84);
                    let mut all = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
                    all.reverse();
                    self.push(Object::Tuple(all))?;
                }
                b't' => {
                    let all = self.since_mark()?;
                    self.push(Object::Tuple(all))?;
                }
                b'a' => {
                    let one = self.pop()?;
                    self.append(vec![one])?;
                }
                b'e' | 0x90 => {
                    let all = self.since_mark()?;
                    self.append(all)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(vec![key, value])?;
                }
                b'u' => {
                    let all = self.since_mark()?;
                    self.set_items(all)?;
                }
                b'q' | b'r' => drop(memo.insert(self.unsigned(if op == b'q' { 1 } else { 4 })?, self.top()?)),
                0x94 => drop(memo.insert(memo.len(), self.top()?)),
                b'h' | b'j' => {
                    let place = self.unsigned(if op == b'h' { 1 } else { 4 })?;
                    self.stack.push(*memo.get(&place).context("it takes what is not there")?);
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Object::Global(format!("{module}.{name}")))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let name = format!("{}.{}", self.string(module)?, self.string(name)?);
                    self.push(Object::Global(name))?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.push(Object::Storage(storage))?;
                }
                b'R' | 0x81 => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.call(function, arguments)?;
                }
                b'b' => {
                    let (state, of) = (self.pop()?, self.top()?);
                    if let Object::Instance(own) = &mut self.objects[of] {
                        *own = Some(state);
                    }
                }
                other => bail!("it holds the operation {other:#04x}, which PyTorch never writes"),
            }
        }
    }

    fn append(&mut self, more: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        match &mut self.objects[top] {
            Object::List(all) => all.extend(more),
            _ => bail!("it appends to what is no list"),
        }
        Ok(())
    }

    fn set_items(&mut self, pairs: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        match &mut self.objects[top] {
            Object::Dict(all) => all.extend(pairs.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            // Attributes of an object of a class of somebody's own.
            Object::Instance(_) => {}
            _ => bail!("it sets entries of what is no dictionary"),
        }
        Ok(())
    }

    fn string(&self, id: Id) -> Result<String> {
        match &self.objects[id] {
            Object::Text(text) => Ok(text.clone()),
            _ => bail!("it names something by what is no text"),
        }
    }

    fn parts(&self, id: Id) -> &[Id] {
        match &self.objects[id] {
            Object::Tuple(all) | Object::List(all) => all,
            _ => &[],
        }
    }

    fn ints(&self, id: Id) -> Result<Vec<i64>> {
        let int = |id: &Id| match self.objects[*id] {
            Object::Int(n) => Ok(n),
            _ => bail!("a size is no whole number"),
        };
        self.parts(id).iter().map(int).collect()
    }

    /// `('storage', FloatStorage, '0', 'cpu', 12)`.
    fn storage(&self, id: Id) -> Result<Storage> {
        let [_, class, key, ..] = self.parts(id) else { bail!("it refers to what is no storage") };
        let class = match &self.objects[*class] {
            Object::Global(name) => name.rsplit('.').next().unwrap_or_default().to_owned(),
            _ => bail!("it refers to what is no storage"),
        };
        Ok(Storage { class, key: self.string(*key)? })
    }

    /// What calling a function gives, as far as this reader knows it. Nothing is called.
    fn call(&mut self, function: Id, arguments: Id) -> Result<()> {
        let name = match &self.objects[function] {
            Object::Global(name) => name.clone(),
            _ => String::new(),
        };
        let given = self.parts(arguments).to_vec();
        let result = match (name.as_str(), given.as_slice()) {
            (
                "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor",
                [storage, offset, size, stride, ..],
            ) => {
                let Object::Storage(storage) = &self.objects[*storage] else { bail!("a tensor has no storage") };
                let offset = match self.objects[*offset] {
                    Object::Int(n) => n,
                    _ => bail!("an offset is no whole number"),
                };
                let (storage, size, stride) = (storage.clone(), self.ints(*size)?, self.ints(*stride)?);
                Object::Tensor { storage, offset, size, stride }
            }
            (
                "torch._utils._rebuild_parameter"
                | "torch._utils._rebuild_parameter_with_state"
                | "torch.jit._pickle.restore_type_tag",
                [inner, ..],
            ) => {
                self.stack.push(*inner);
                return Ok(());
            }
            ("collections.OrderedDict", _) => Object::Dict(Vec::new()),
            (other, _) if other.starts_with("torch.") && other.contains("_rebuild_") => {
                let short = other.rsplit('.').next().unwrap_or(other).trim_start_matches("_rebuild_");
                Object::Opaque(short.to_owned())
            }
            _ => Object::Instance(None),
        };
        self.push(result)
    }

    /// The entry of a dictionary, or the attribute of an instance.
    fn member(&self, id: Id, name: &str) -> Option<Id> {
        let named = |(key, _): &&(Id, Id)| matches!(&self.objects[*key], Object::Text(text) if text == name);
        match &self.objects[id] {
            Object::Dict(all) => all.iter().find(named).map(|(_, value)| *value),
            Object::Instance(Some(state)) if matches!(self.objects[*state], Object::Dict(_)) => {
                self.member(*state, name)
            }
            _ => None,
        }
    }

    /// Adds every tensor below an object with its key.
    fn collect<'s>(
        &'s self,
        id: Id,
        key: String,
        deep: usize,
        seen: &mut usize,
        found: &mut Vec<(String, &'s Object)>,
    ) -> Result<()> {
        // An object may stand in many places, and within itself.
        *seen += 1;
        ensure!(*seen <= MOST_ENTRIES && key.len() <= LONGEST_KEY, "it holds more entries than any model has");
        match &self.objects[id] {
            object @ (Object::Tensor { .. } | Object::Opaque(_)) => found.push((key, object)),
            Object::Instance(Some(state)) if deep > 0 => self.collect(*state, key, deep - 1, seen, found)?,
            Object::Dict(all) if deep > 0 => {
                for (name, value) in all {
                    if let Object::Text(name) = &self.objects[*name] {
                        let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                        self.collect(*value, key, deep - 1, seen, found)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
