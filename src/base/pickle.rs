//! Python's pickles read as data: nothing in them is executed.
//!
//! A pickle is a program for a stack machine that may call any function of Python; this machine notes what would be called, and calls
//! nothing.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

/// Objects that a pickle may make.
const MOST_OBJECTS: usize = 1 << 24;
/// Bytes of the name of a function with its module.
const LONGEST_NAME: usize = 256;

/// Number of an object in the machine's memory.
pub type Id = usize;

/// What a pickle makes.
#[derive(Debug)]
pub enum Object {
    /// None, or a number that is no whole one.
    Nothing,
    /// A whole number; a truth value is 0 or 1.
    Int(i64),
    /// Text of Python 3.
    Text(String),
    /// Bytes, and text of Python 2: a part of the pickle.
    Bytes(Range<usize>),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    /// Keys and values of a dictionary.
    Dict(Vec<(Id, Id)>),
    /// A function or class: module.name.
    Global(String),
    /// An object outside of the pickle, and what names it.
    Persistent(Id),
    /// What a call would give: the function, the arguments, and the state that is set afterwards.
    Call(Id, Id, Option<Id>),
}

/// The objects of a pickle.
#[derive(Debug)]
pub struct Pickle<'a> {
    /// The pickle.
    bytes: &'a [u8],
    objects: Vec<Object>,
    /// The object that it is of.
    pub root: Id,
}

impl<'a> Pickle<'a> {
    /// Reads a pickle of any protocol up to 5.
    ///
    /// # Errors
    /// When it is damaged (names the byte), or uses an operation that neither PyTorch nor NumPy writes.
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut machine = Machine { bytes, at: 0, objects: Vec::new(), stack: Vec::new(), marks: Vec::new() };
        let root = machine.run().with_context(|| format!("it is damaged at byte {}", machine.at))?;
        Ok(Pickle { bytes, objects: machine.objects, root })
    }

    /// An object.
    pub fn get(&self, id: Id) -> &Object {
        &self.objects[id]
    }

    /// The text of an object, also of one that Python 2 wrote.
    pub fn text(&self, id: Id) -> Option<Cow<'_, str>> {
        match &self.objects[id] {
            Object::Text(text) => Some(Cow::Borrowed(text)),
            Object::Bytes(range) => Some(String::from_utf8_lossy(&self.bytes[range.clone()])),
            _ => None,
        }
    }

    /// The bytes of an object; those that protocol 2 writes as text of code points below 256, too.
    pub fn bytes(&self, id: Id) -> Option<Cow<'_, [u8]>> {
        match &self.objects[id] {
            Object::Bytes(range) => Some(Cow::Borrowed(&self.bytes[range.clone()])),
            _ => {
                let ("_codecs.encode", [text, ..], _) = self.call(id)? else { return None };
                let Object::Text(text) = &self.objects[*text] else { return None };
                text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect::<Option<Vec<_>>>().map(Cow::Owned)
            }
        }
    }

    /// The function of a call, its arguments, and the state of what it gives.
    pub fn call(&self, id: Id) -> Option<(&str, &[Id], Option<Id>)> {
        let Object::Call(function, arguments, state) = self.objects[id] else { return None };
        let function = if let Object::Global(name) = &self.objects[function] { name } else { "" };
        Some((function, self.parts(arguments), state))
    }

    /// The parts of a tuple or list; none of another object.
    pub fn parts(&self, id: Id) -> &[Id] {
        match &self.objects[id] {
            Object::Tuple(all) | Object::List(all) => all,
            _ => &[],
        }
    }

    /// The parts of a tuple or list of whole numbers.
    ///
    /// # Errors
    /// When one of them is no whole number.
    pub fn ints(&self, id: Id) -> Result<Vec<i64>> {
        let int = |id: &Id| match self.objects[*id] {
            Object::Int(n) => Ok(n),
            _ => bail!("a part is no whole number"),
        };
        self.parts(id).iter().map(int).collect()
    }

    /// The entry of a dictionary, or the attribute of an object.
    pub fn member(&self, id: Id, name: &str) -> Option<Id> {
        let named = |(key, _): &&(Id, Id)| self.text(*key).is_some_and(|text| text == name);
        match &self.objects[id] {
            Object::Dict(all) => all.iter().find(named).map(|(_, value)| *value),
            Object::Call(_, _, Some(state)) if matches!(self.objects[*state], Object::Dict(_)) => {
                self.member(*state, name)
            }
            _ => None,
        }
    }
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

    fn range(&mut self, n: usize) -> Result<Object> {
        self.take(n)?;
        Ok(Object::Bytes(self.at - n..self.at))
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
        ensure!(self.marks.last().is_none_or(|mark| self.stack.len() > *mark), "it uses an object that does not exist");
        self.stack.pop().context("it uses an object that does not exist")
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().context("it uses an object that does not exist")
    }

    fn since_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().context("it uses an object that does not exist")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    /// Notes a call. Nothing is called.
    fn call(&mut self, function: Id, arguments: Id) -> Result<()> {
        let dict = matches!(&self.objects[function], Object::Global(name) if name == "collections.OrderedDict");
        self.push(if dict { Object::Dict(Vec::new()) } else { Object::Call(function, arguments, None) })
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        // Short, so that a million of them do not fill the memory.
        ensure!(module.len() + name.len() < LONGEST_NAME, "it holds a name of more than {LONGEST_NAME} bytes");
        self.push(Object::Global(format!("{module}.{name}")))
    }

    fn string(&self, id: Id) -> Result<String> {
        match &self.objects[id] {
            Object::Text(text) => Ok(text.clone()),
            Object::Bytes(range) => Ok(String::from_utf8_lossy(&self.bytes[range.clone()]).into_owned()),
            _ => bail!("it uses an object that is not text as a name"),
        }
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
                b'N' => self.push(Object::Nothing)?,
                0x88 | 0x89 => self.push(Object::Int(i64::from(op == 0x88)))?,
                b'G' => {
                    self.take(8)?;
                    self.push(Object::Nothing)?;
                }
                b'F' => {
                    self.line()?;
                    self.push(Object::Nothing)?;
                }
                b'I' | b'L' => {
                    let line = self.line()?;
                    let n = line.trim_end_matches('L').parse().context("a number is none")?;
                    self.push(Object::Int(n))?;
                }
                b'S' => {
                    let (start, line) = (self.at, self.line()?);
                    let quoted = line.len() > 1 && matches!(line.as_bytes()[0], b'\'' | b'"') && !line.contains('\\');
                    ensure!(quoted, "it holds a text that is not quoted, or with escapes");
                    self.push(Object::Bytes(start + 1..self.at - 2))?;
                }
                b'V' => {
                    let line = self.line()?;
                    self.push(Object::Text(line))?;
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
                b'X' | 0x8c | 0x8d => {
                    let n = self.unsigned(if op == b'X' { 4 } else { [1, 8][usize::from(op - 0x8c)] })?;
                    let text = self.text(n)?;
                    self.push(Object::Text(text))?;
                }
                b'T' | b'B' | b'U' | b'C' | 0x8e | 0x96 => {
                    let width = if b"TB".contains(&op) { 4 } else { if b"UC".contains(&op) { 1 } else { 8 } };
                    let n = self.unsigned(width)?;
                    let bytes = self.range(n)?;
                    self.push(bytes)?;
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
                b'l' => {
                    let all = self.since_mark()?;
                    self.push(Object::List(all))?;
                }
                b'd' => {
                    let all = self.since_mark()?;
                    self.push(Object::Dict(all.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()))?;
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
                b'p' => drop(memo.insert(self.line()?.parse().context("a number is none")?, self.top()?)),
                0x94 => drop(memo.insert(memo.len(), self.top()?)),
                b'h' | b'j' => {
                    let place = self.unsigned(if op == b'h' { 1 } else { 4 })?;
                    self.stack.push(*memo.get(&place).context("it uses an object that does not exist")?);
                }
                b'g' => {
                    let place: usize = self.line()?.parse().context("a number is none")?;
                    self.stack.push(*memo.get(&place).context("it uses an object that does not exist")?);
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (module, name) = (self.string(module)?, self.string(name)?);
                    self.global(&module, &name)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Object::Persistent(id))?;
                }
                b'R' | 0x81 => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.call(function, arguments)?;
                }
                b'b' => {
                    let (state, of) = (self.pop()?, self.top()?);
                    if let Object::Call(_, _, own) = &mut self.objects[of] {
                        *own = Some(state);
                    }
                }
                other => bail!("it holds the operation {other:#04x}, which neither PyTorch nor NumPy writes"),
            }
        }
    }

    fn append(&mut self, more: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        match &mut self.objects[top] {
            Object::List(all) => all.extend(more),
            _ => bail!("it appends to an object that is not a list"),
        }
        Ok(())
    }

    fn set_items(&mut self, pairs: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        match &mut self.objects[top] {
            Object::Dict(all) => all.extend(pairs.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            // Attributes of an object of a class of somebody's own.
            Object::Call(..) => {}
            _ => bail!("it sets entries of an object that is not a dictionary"),
        }
        Ok(())
    }
}
