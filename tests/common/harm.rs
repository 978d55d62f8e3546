//! Harmed files for every reader of files that ganvae did not write itself, or not just now.
//!
//! Each case takes a good file, harms it in one to four places and has it read. A reader may refuse it, with one error
//! that names the file, or accept it; it may not panic, take long, or take memory out of proportion. A case is a
//! function of its number alone: `GANVAE_FUZZ_CASE=reader:number cargo test --release --test 'broken_*'` replays one, says
//! what came of it and keeps its files; `GANVAE_FUZZ_CASES=1000000` makes it that many for each reader.
//! `RUST_BACKTRACE=0` makes long runs quicker, because errors then keep no backtrace.
//!
//! Every reader runs on a rayon pool of one thread, so that what it hands to rayon stays on that thread and what the
//! thread allocates is what the case took. Memory that libtorch allocates itself is not seen.

// Each test program uses its own part of this.
#![allow(dead_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::sync::{Once, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;
use ganvae::base::seed::Rng;
use tempfile::TempDir;

/// Cases for each reader unless `GANVAE_FUZZ_CASES` says otherwise: a few seconds in all.
pub const CASES: u64 = 2000;
/// A case that takes longer is a fault; one that takes three times as long is taken for endless and ends the process.
pub const SLOWEST: Duration = Duration::from_secs(10);
/// During a case a single request for more than this is turned down, so that a fault does not cost the machine.
pub const LARGEST_REQUEST: usize = 2 << 30;
/// Kinds of fault after which a reader's run ends.
pub const MOST_FAULTS: usize = 40;

/// What can be fuzzed; the place in this list is the reader's slot. The last is for the harness's own tests.
pub const READERS: [&str; 14] = [
    "idx",
    "cifar",
    "folder",
    "config",
    "safetensors",
    "state",
    "metrics",
    "zip",
    "tar",
    "npy",
    "npz",
    "pickle",
    "csv",
    "control",
];
pub const CONTROL: usize = 13;

// ---------------------------------------------------------------------------------------------------------------------
// Memory, time and sudden ends
// ---------------------------------------------------------------------------------------------------------------------

thread_local! {
    // All without destructors and initialised at compile time: an allocator may read them at any moment.
    pub static NOW: Cell<isize> = const { Cell::new(0) };
    pub static PEAK: Cell<isize> = const { Cell::new(0) };
    /// The slot of the case that this thread is at, while it is at one.
    static AT: Cell<Option<usize>> = const { Cell::new(None) };
    /// What the panic of the case under way said.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The number of the case that each slot is at, and when it began: milliseconds since the start and 1, or 0 for none.
pub static NUMBERS: [AtomicU64; READERS.len()] = [const { AtomicU64::new(0) }; READERS.len()];
pub static BEGAN: [AtomicU64; READERS.len()] = [const { AtomicU64::new(0) }; READERS.len()];
pub static START: OnceLock<Instant> = OnceLock::new();
/// Where the real stderr is: number 2 is closed off, because [`checkpoint::newest_resumable`] warns there in every case.
pub static STDERR: AtomicI32 = AtomicI32::new(2);

/// The system's allocator, counting the bytes that each thread holds.
pub struct Counting;

#[global_allocator]
pub static ALLOCATOR: Counting = Counting;

pub fn count(by: isize) {
    NOW.set(NOW.get() + by);
    PEAK.set(PEAK.get().max(NOW.get()));
}

/// Whether a request is turned down; it counts as if it had been granted.
pub fn turned_down(size: usize) -> bool {
    let down = size > LARGEST_REQUEST && AT.get().is_some();
    if down {
        PEAK.set(PEAK.get().max(NOW.get().saturating_add_unsigned(size)));
    }
    down
}

// SAFETY: everything is the system allocator's answer, or null, which says that there is no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if turned_down(layout.size()) {
            return std::ptr::null_mut();
        }
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if turned_down(layout.size()) {
            return std::ptr::null_mut();
        }
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if turned_down(size) {
            return std::ptr::null_mut();
        }
        // Old and new may stand side by side while the bytes are copied.
        count(size as isize);
        count(-(layout.size() as isize));
        unsafe { System.realloc(ptr, layout, size) }
    }
}

/// A line on the real stderr.
pub fn say(text: &str) {
    raw_say(format!("{text}\n").as_bytes());
}

pub fn raw_say(text: &[u8]) {
    // SAFETY: the pointer and the length are those of one slice.
    unsafe { libc::write(STDERR.load(Relaxed), text.as_ptr().cast(), text.len()) };
}

/// Names the case at which the process is about to end: a stack that overflowed, or memory that could not be had.
/// Neither can be caught, and what Rust says about them is closed off.
extern "C" fn on_abort(_: libc::c_int) {
    if let Some(slot) = AT.get() {
        // In a signal handler nothing may be allocated.
        let mut line = [0u8; 256];
        let mut rest = &mut line[..];
        let _ = writeln!(
            rest,
            "\nGANVAE_FUZZ_CASE={}:{} ended the process at a peak of {} bytes: no more stack, or no more memory",
            READERS[slot],
            NUMBERS[slot].load(Relaxed),
            PEAK.get()
        );
        let left = rest.len();
        let used = line.len() - left;
        raw_say(&line[..used]);
    }
}

/// Once for the process: panics of cases kept to themselves, the watchdog, word of sudden ends.
pub fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        START.get_or_init(Instant::now);
        // SAFETY: plain calls on file descriptors of this process, and a handler that only reads atomics and writes.
        unsafe {
            let real = libc::dup(2);
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY);
            assert!(real >= 0 && null >= 0 && libc::dup2(null, 2) == 2);
            STDERR.store(real, Relaxed);
            libc::close(null);
            libc::signal(libc::SIGABRT, on_abort as *const () as libc::sighandler_t);
        }
        std::panic::set_hook(Box::new(|info| match AT.get() {
            Some(_) => SAID.set(Some(info.to_string())),
            None => say(&info.to_string()),
        }));
        std::thread::spawn(watch);
    });
}

pub fn millis() -> u64 {
    START.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

pub fn watch() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        for (slot, began) in BEGAN.iter().enumerate() {
            let began = began.load(Relaxed);
            if began != 0 && millis().saturating_sub(began) > 3 * SLOWEST.as_millis() as u64 {
                let number = NUMBERS[slot].load(Relaxed);
                say(&format!("GANVAE_FUZZ_CASE={}:{number} does not end: the process does", READERS[slot]));
                std::process::abort();
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// One case, and many
// ---------------------------------------------------------------------------------------------------------------------

/// What a case gives its reader.
pub struct Input {
    /// What an error has to name.
    pub path: PathBuf,
    /// Length of the harmed file.
    pub bytes: usize,
    /// Most bytes that the reader may hold at once, other than what [`Target::promised`] allows.
    pub most: usize,
}

/// One reader with its good files.
pub trait Target {
    /// How many good files there are.
    fn seeds(&self) -> usize;

    /// Puts a good file where the reader looks, harmed by `rng` when there is one.
    fn put(&mut self, seed: usize, rng: Option<&mut Rng>) -> Input;

    /// Calls the reader. Panics when something is accepted that is not whole.
    fn read(&mut self) -> Result<()>;

    /// Bytes that the input may take beyond [`Input::most`] because it honestly announces them.
    fn promised(&self) -> usize {
        0
    }
}

/// What is wrong with a reader: a text that is the same for cases of one kind, and the whole one.
#[derive(Debug)]
pub struct Fault {
    pub kind: String,
    pub text: String,
}

pub fn fault(kind: impl Into<String>, text: impl Into<String>) -> Fault {
    Fault { kind: kind.into(), text: text.into() }
}

/// What came of a case: the reader's answer or the fault, and the bytes that it held at the most.
pub struct Outcome {
    pub answer: Result<Result<(), String>, Fault>,
    pub peak: usize,
}

/// Runs one case and demands what holds for every reader.
pub fn examine(slot: usize, number: u64, target: &mut dyn Target, input: &Input, slowest: Duration) -> Outcome {
    NUMBERS[slot].store(number, Relaxed);
    BEGAN[slot].store(millis(), Relaxed);
    AT.set(Some(slot));
    let start = NOW.get();
    PEAK.set(start);
    let clock = Instant::now();
    let answer = catch_unwind(AssertUnwindSafe(|| target.read().map_err(|e| format!("{e:#}"))));
    let (took, peak) = (clock.elapsed(), (PEAK.get() - start).max(0) as usize);
    let answer = answer.map_err(|payload| panicked(&*payload));
    let fine = |answer: Result<(), String>| {
        if took > slowest {
            return Err(fault("slow", format!("it took {took:?}")));
        }
        if peak > input.most {
            let promised = catch_unwind(AssertUnwindSafe(|| target.promised())).unwrap_or(0);
            if peak > input.most + promised {
                let kind = if answer.is_ok() { "memory, accepted" } else { "memory, refused" };
                return Err(fault(
                    kind,
                    format!(
                        "it held {peak} bytes, more than {} for a file of {} ({answer:?})",
                        input.most + promised,
                        input.bytes
                    ),
                ));
            }
        }
        match &answer {
            Err(text) if text.trim().is_empty() => Err(fault("silent", "its error is empty")),
            Err(text) if !text.contains(&*input.path.to_string_lossy()) => {
                let kind: String = text.chars().filter(|c| c.is_alphabetic()).take(60).collect();
                let path = input.path.display();
                Err(fault(format!("nameless {kind}"), format!("its error does not name {path}: {text}")))
            }
            _ => Ok(answer),
        }
    };
    let answer = answer.and_then(fine);
    AT.set(None);
    BEGAN[slot].store(0, Relaxed);
    Outcome { answer, peak }
}

/// The fault that a panic is; the place, which stands first in what the hook has noted, is its kind.
pub fn panicked(payload: &(dyn Any + Send)) -> Fault {
    let said = SAID.take().unwrap_or_else(|| format!("panicked somewhere ({:?})", payload.type_id()));
    fault(said.lines().next().unwrap_or_default(), said.replace('\n', " "))
}

/// What came of many cases.
#[derive(Default)]
pub struct Tally {
    pub cases: u64,
    pub accepted: u64,
    pub refused: u64,
    pub peak: usize,
    pub peak_at: u64,
    pub slowest: Duration,
    pub slowest_at: u64,
    pub took: Duration,
    /// By kind: how many, and the first, with its number.
    pub faults: BTreeMap<String, (u64, u64, String)>,
}

/// The generator of a case: neighbouring numbers and readers have nothing in common.
pub fn generator(slot: usize, number: u64) -> Rng {
    Rng::new(Rng::new(number ^ ((slot as u64) << 56)).next_u64())
}

/// Puts and reads the cases of these numbers.
pub fn campaign(slot: usize, numbers: Range<u64>, target: &mut dyn Target) -> Tally {
    let mut tally = Tally::default();
    let start = Instant::now();
    for number in numbers {
        let mut rng = generator(slot, number);
        let seed = pick(&mut rng, target.seeds());
        let input = target.put(seed, Some(&mut rng));
        let clock = Instant::now();
        let Outcome { answer, peak } = examine(slot, number, target, &input, SLOWEST);
        tally.cases += 1;
        if peak > tally.peak {
            (tally.peak, tally.peak_at) = (peak, number);
        }
        if clock.elapsed() > tally.slowest {
            (tally.slowest, tally.slowest_at) = (clock.elapsed(), number);
        }
        match answer {
            Ok(Ok(())) => tally.accepted += 1,
            Ok(Err(_)) => tally.refused += 1,
            Err(fault) => {
                tally.faults.entry(fault.kind).or_insert((0, number, fault.text)).0 += 1;
                if tally.faults.len() >= MOST_FAULTS {
                    break;
                }
            }
        }
    }
    tally.took = start.elapsed();
    tally
}

/// A whole number from the environment.
pub fn asked(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: wanted a whole number")))
}

/// The one case that is to be replayed, as reader and number.
pub fn replayed() -> Option<(String, u64)> {
    let text = std::env::var("GANVAE_FUZZ_CASE").ok()?;
    let parts = text.split_once(':').and_then(|(reader, n)| Some((reader.to_owned(), n.parse().ok()?)));
    let parts = parts.filter(|(reader, _)| READERS.contains(&reader.as_str()));
    Some(parts.unwrap_or_else(|| panic!("GANVAE_FUZZ_CASE={text}: wanted READER:NUMBER, of {}", READERS.join(", "))))
}

/// A folder in memory where there is such a thing: a case writes a file and reads several.
pub fn scratch() -> TempDir {
    let name = tempfile::Builder::new().prefix("ganvae-fuzz-").tempdir_in("/dev/shm");
    name.unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// The test of one reader: its good files are read as they are, then the harmed ones are tried.
pub fn fuzz<T: Target>(slot: usize, make: impl FnOnce(&Path) -> T + Send) {
    prepare();
    let (reader, replay) = (READERS[slot], replayed());
    if replay.as_ref().is_some_and(|(name, _)| name != reader) {
        return;
    }
    let dir = scratch();
    let body = || {
        let mut target = make(dir.path());
        if let Some((_, number)) = replay {
            let mut rng = generator(slot, number);
            let seed = pick(&mut rng, target.seeds());
            let input = target.put(seed, Some(&mut rng));
            // Said before, because the process may end.
            say(&format!("{reader}:{number}: {} bytes in {}", input.bytes, input.path.display()));
            let Outcome { answer, peak } = examine(slot, number, &mut target, &input, SLOWEST);
            say(&format!("{reader}:{number}: {answer:?}, peak of {peak} bytes (most {})", input.most));
            return answer.is_err();
        }
        for seed in 0..target.seeds() {
            let input = target.put(seed, None);
            let Outcome { answer, .. } = examine(slot, 0, &mut target, &input, SLOWEST);
            assert!(matches!(answer, Ok(Ok(()))), "{reader}: good file {seed} is not read: {answer:?}");
        }
        let t = campaign(slot, 0..asked("GANVAE_FUZZ_CASES").unwrap_or(CASES), &mut target);
        say(&format!(
            "fuzz {reader:<11} {} cases, {} accepted, {} refused, {:.0} cases/s, largest peak {:.2} MiB (case {}), \
             slowest {:.2} s (case {})",
            t.cases,
            t.accepted,
            t.refused,
            t.cases as f64 / t.took.as_secs_f64(),
            t.peak as f64 / f64::from(1 << 20),
            t.peak_at,
            t.slowest.as_secs_f64(),
            t.slowest_at
        ));
        // All of one sort would mean that the harm is none, or that nothing of the file is ever looked at.
        assert!(t.cases < 500 || (t.accepted > 0 && t.refused > 0), "{reader}: all cases came to the same");
        let list = t
            .faults
            .values()
            .map(|(n, number, text)| format!("\n  GANVAE_FUZZ_CASE={reader}:{number} ({n} of this kind): {text}"));
        let list: String = list.collect();
        assert!(list.is_empty(), "{reader}: {} kinds of fault:{list}", t.faults.len());
        false
    };
    // The stack of the program's main thread is larger: what fits here fits there.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).stack_size(2 << 20).build().unwrap();
    let replaying = replayed().is_some();
    match catch_unwind(AssertUnwindSafe(|| pool.install(body))) {
        Ok(at_fault) => {
            if replaying {
                say(&format!("{reader}: the files are in {}", dir.keep().display()));
            }
            assert!(!at_fault, "{reader}: a fault");
        }
        Err(e) => resume_unwind(e),
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Harm
// ---------------------------------------------------------------------------------------------------------------------

/// Numbers at which something overflows, wraps or changes its sign when it is cut to 1, 2, 4 or 8 bytes.
pub const INTEGERS: [u64; 20] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    1_000_000_000,
    i32::MAX as u64,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 53,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 7,
    u64::MAX,
];

/// Numbers as text, for TOML and JSON.
pub const NUMBERS_AS_TEXT: &str = "0 -0 1 -1 3 0.5 1000000000 2147483647 2147483648 4294967295 4294967296 9007199254740992 \
    9007199254740993 9223372036854775807 9223372036854775808 -9223372036854775809 18446744073709551615 \
    18446744073709551616 1e308 -1e308 1e999 -1e999 1e-999 NaN nan -inf Infinity 0x7fffffffffffffff 0b1 1_000 1. 00";

/// What opens something that has to be closed again, or goes one level deeper.
pub const OPENERS: [&str; 10] = ["[", "{\"a\":", "{a=", "a.", "[[", "{", "\"", "'''", "[a.", "[1,"];

/// Bytes that are no text, or text that is more than it looks.
pub const ODD_TEXT: [&[u8]; 12] = [
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    "é".as_bytes(),
    "𝄞𝄞".as_bytes(),
    b"\0",
    "\u{2028}".as_bytes(),
    b"\\ud800",
    b"\\u0000",
    b"\r",
    b"\\",
];

/// Below `n`; 0 of none.
pub fn pick(rng: &mut Rng, n: usize) -> usize {
    rng.below(n as u64) as usize
}

/// One word of a list with blanks between them.
pub fn word<'a>(rng: &mut Rng, list: &'a str) -> &'a str {
    let n = pick(rng, list.split(' ').count());
    list.split(' ').nth(n).unwrap_or_default()
}

/// A place in `len` bytes: often near the start, where headers are, sometimes near the end.
pub fn spot(rng: &mut Rng, len: usize) -> usize {
    match rng.below(8) {
        0..4 => pick(rng, len.min(40)),
        4 => len - 1 - pick(rng, len.min(16)),
        _ => pick(rng, len),
    }
}

/// A part of `len` bytes, mostly a short one.
pub fn part(rng: &mut Rng, len: usize) -> Range<usize> {
    let from = spot(rng, len);
    let most = if rng.below(4) == 0 { len - from } else { (len - from).min(16) };
    from..from + 1 + pick(rng, most)
}

pub fn harm_bytes(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    if bytes.is_empty() {
        bytes.extend_from_slice(other);
        return;
    }
    match rng.below(10) {
        0 => {
            for _ in 0..1 + rng.below(4) {
                let at = spot(rng, bytes.len());
                bytes[at] ^= 1 << rng.below(8);
            }
        }
        1 => {
            let at = spot(rng, bytes.len());
            bytes[at] = [0, 1, 0x7f, 0x80, 0xff][pick(rng, 5)];
        }
        2 | 3 => {
            let mut value = INTEGERS[pick(rng, INTEGERS.len())].to_le_bytes();
            let width = [2, 4, 8][pick(rng, 3)];
            if rng.below(2) == 0 {
                value[..width].reverse();
            }
            let at = spot(rng, bytes.len());
            let to = bytes.len().min(at + width);
            bytes[at..to].copy_from_slice(&value[..to - at]);
        }
        4 => {
            let at = spot(rng, bytes.len());
            bytes[at] = bytes[at].wrapping_add(rng.below(17) as u8).wrapping_sub(8);
        }
        5 => {
            let at = match rng.below(2) {
                0 => bytes.len() - 1 - pick(rng, bytes.len().min(8)),
                _ => pick(rng, bytes.len()),
            };
            bytes.truncate(at);
        }
        6 => {
            let (fill, noise) = (rng.next_u64() as u8, rng.below(2) == 0);
            for _ in 0..1 + rng.below(64) {
                bytes.push(if noise { rng.next_u64() as u8 } else { fill });
            }
        }
        7 => {
            let from = part(rng, bytes.len());
            let at = spot(rng, bytes.len());
            let copy = bytes[from].to_vec();
            bytes.splice(at..at, copy);
        }
        8 => {
            let gone = part(rng, bytes.len());
            bytes.drain(gone);
        }
        _ => {
            let (head, tail) = (spot(rng, bytes.len()), pick(rng, other.len()));
            bytes.truncate(head);
            bytes.extend_from_slice(&other[tail..]);
        }
    }
}

/// The words, numbers, blanks and signs of a text.
pub fn tokens(text: &[u8]) -> Vec<Range<usize>> {
    let class = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'+' | b'.' => 0,
        b' ' | b'\t' => 1,
        0x80.. => 2,
        _ => 3,
    };
    let mut found: Vec<Range<usize>> = Vec::new();
    for (i, &b) in text.iter().enumerate() {
        match found.last_mut() {
            Some(last) if class(b) < 3 && class(text[i - 1]) == class(b) => last.end = i + 1,
            _ => found.push(i..i + 1),
        }
    }
    found
}

/// `words` are those that mean something to the reader.
pub fn harm_text(rng: &mut Rng, text: &mut Vec<u8>, words: &str) {
    let all = tokens(text);
    if all.is_empty() {
        text.extend_from_slice(word(rng, words).as_bytes());
        return;
    }
    let one = all[pick(rng, all.len())].clone();
    match rng.below(10) {
        0 => {
            let (a, b) = (pick(rng, all.len()), pick(rng, all.len()));
            let (a, b) = (all[a.min(b)].clone(), all[a.max(b)].clone());
            if a.end <= b.start {
                let swapped = [&text[b.clone()], &text[a.end..b.start], &text[a.clone()]].concat();
                text.splice(a.start..b.end, swapped);
            }
        }
        1 | 2 => {
            let digits = |r: &&Range<usize>| text[(*r).clone()].iter().any(u8::is_ascii_digit);
            let numbers: Vec<Range<usize>> = all.iter().filter(digits).cloned().collect();
            let at = if numbers.is_empty() { one } else { numbers[pick(rng, numbers.len())].clone() };
            match rng.below(12) {
                0 => drop(text.splice(at, std::iter::repeat_n(b'9', 400))),
                _ => drop(text.splice(at, word(rng, NUMBERS_AS_TEXT).bytes())),
            }
        }
        3 => {
            // A line again, elsewhere: a key twice.
            let lines: Vec<Vec<u8>> = text.split_inclusive(|&b| b == b'\n').map(<[u8]>::to_vec).collect();
            let (from, to) = (pick(rng, lines.len()), pick(rng, lines.len()));
            let at = lines[..to].iter().map(Vec::len).sum::<usize>();
            text.splice(at..at, lines[from].iter().copied());
        }
        4 => {
            // Deep, and sometimes closed again: what calls itself for every level meets the end of its stack.
            let opener = OPENERS[pick(rng, OPENERS.len())];
            let depth = [2, 60, 130, 1000, 20_000][pick(rng, 5)];
            let mut deep = opener.repeat(depth).into_bytes();
            if rng.below(2) == 0 {
                deep.push(b'1');
                let closer = if opener.starts_with('{') { b'}' } else { b']' };
                deep.extend(std::iter::repeat_n(closer, depth));
            }
            match rng.below(2) {
                0 => drop(text.splice(one, deep)),
                _ => drop(text.splice(one.start..one.start, deep)),
            }
        }
        5 => {
            let odd = ODD_TEXT[pick(rng, ODD_TEXT.len())];
            let at = one.start + pick(rng, one.len() + 1);
            text.splice(at..at, odd.iter().copied());
        }
        6 | 7 => drop(text.splice(one, word(rng, words).bytes())),
        8 => {
            let (a, b) = (pick(rng, all.len()), pick(rng, all.len()));
            let copy = text[all[a.min(b)].start..all[a.max(b)].end].to_vec();
            text.splice(one.start..one.start, copy);
        }
        _ => {
            let times = [0, 2, 2000][pick(rng, 3)];
            let many = text[one.clone()].repeat(times);
            text.splice(one, many);
        }
    }
    // What is copied over and over would only make the cases slow.
    text.truncate(1 << 18);
}

/// A good file harmed in one to four places; `words` for text.
pub fn harm(rng: &mut Rng, good: &[u8], other: &[u8], words: Option<&str>) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..1 + rng.below(4) {
        match words {
            Some(words) if rng.below(4) > 0 => harm_text(rng, &mut bytes, words),
            _ => harm_bytes(rng, &mut bytes, other),
        }
    }
    bytes
}

// ---------------------------------------------------------------------------------------------------------------------
// The readers
// ---------------------------------------------------------------------------------------------------------------------

/// A folder of good files, of which at most one at a time is another.
pub struct Folder {
    pub dir: PathBuf,
    pub files: Vec<(String, Vec<u8>)>,
    pub changed: usize,
}

impl Folder {
    pub fn new(dir: PathBuf, files: Vec<(String, Vec<u8>)>) -> Self {
        fs::create_dir_all(&dir).unwrap();
        for (name, bytes) in &files {
            fs::write(dir.join(name), bytes).unwrap();
        }
        Folder { dir, files, changed: 0 }
    }

    /// Makes file `i` these bytes and all others good; gives its path.
    pub fn put(&mut self, i: usize, bytes: &[u8]) -> PathBuf {
        if self.changed != i {
            let (name, good) = &self.files[self.changed];
            fs::write(self.dir.join(name), good).unwrap();
            self.changed = i;
        }
        let path = self.dir.join(&self.files[i].0);
        fs::write(&path, bytes).unwrap();
        path
    }
}

pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.next_u64() as u8).collect()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// Keys and values of a config file.
pub const CONFIG_WORDS: &str = "model vae gan preset arch conv mlp latent encoder-hidden decoder-hidden generator-hidden \
    base-width activation beta gan-loss r1 gradient-penalty penalty-every d-steps d-lr freeze-d ema ema-half-life lr-end beta2-end r1-end schedule micro-batch epochs steps batch-size lr seed device tune deterministic threads data \
    data-dir image-size channels keep train-limit out run [run] \n[[lr]]\n true false \"\" [] {} [1,2] \"64x64\" \
    \"threads=99999999999\" \"auto,off\" \"products=blas\" 1979-05-27T07:32:00Z \"\"\" ''' = \n";
