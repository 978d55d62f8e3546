//! Harmed files for every reader of files that ganvae did not write itself, or not just now.
//!
//! Each case takes a good file, harms it in one to four places and has it read. A reader may refuse it, with one error
//! that names the file, or accept it; it may not panic, take long, or take memory out of proportion. A case is a
//! function of its number alone: `GANVAE_FUZZ_CASE=reader:number cargo test --release --test fuzz` replays one, says
//! what came of it and keeps its files; `GANVAE_FUZZ_CASES=1000000` makes it that many for each reader.
//! `RUST_BACKTRACE=0` makes long runs quicker, because errors then keep no backtrace.
//!
//! Every reader runs on a rayon pool of one thread, so that what it hands to rayon stays on that thread and what the
//! thread allocates is what the case took. Memory that libtorch allocates itself is not seen.

use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::sync::{Once, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::{Compression, Crc};
use ganvae::base::hash;
use ganvae::base::seed::Rng;
use ganvae::base::usage::Usage;
use ganvae::config::{self, ModelKind, Settings};
use ganvae::data::images::{Images, Source};
use ganvae::data::{cifar, folder, idx};
use ganvae::models::{Part, Visit};
use ganvae::pictures::curves;
use ganvae::run::checkpoint::{self, State};
use image::codecs::gif::GifEncoder;
use image::codecs::pnm::{PnmEncoder, PnmSubtype, SampleEncoding};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Rgba, RgbaImage};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

/// Cases for each reader unless `GANVAE_FUZZ_CASES` says otherwise: a few seconds in all.
const CASES: u64 = 2000;
/// A case that takes longer is a fault; one that takes three times as long is taken for endless and ends the process.
const SLOWEST: Duration = Duration::from_secs(10);
/// During a case a single request for more than this is turned down, so that a fault does not cost the machine.
const LARGEST_REQUEST: usize = 2 << 30;
/// Kinds of fault after which a reader's run ends.
const MOST_FAULTS: usize = 40;

/// What can be fuzzed; the place in this list is the reader's slot. The last is for the harness's own tests.
const READERS: [&str; 8] = ["idx", "cifar", "folder", "config", "safetensors", "state", "metrics", "control"];
const CONTROL: usize = 7;

// ---------------------------------------------------------------------------------------------------------------------
// Memory, time and sudden ends
// ---------------------------------------------------------------------------------------------------------------------

thread_local! {
    // All without destructors and initialised at compile time: an allocator may read them at any moment.
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    /// The slot of the case that this thread is at, while it is at one.
    static AT: Cell<Option<usize>> = const { Cell::new(None) };
    /// What the panic of the case under way said.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The number of the case that each slot is at, and when it began: milliseconds since the start and 1, or 0 for none.
static NUMBERS: [AtomicU64; READERS.len()] = [const { AtomicU64::new(0) }; READERS.len()];
static BEGAN: [AtomicU64; READERS.len()] = [const { AtomicU64::new(0) }; READERS.len()];
static START: OnceLock<Instant> = OnceLock::new();
/// Where the real stderr is: number 2 is closed off, because [`checkpoint::newest_whole`] warns there in every case.
static STDERR: AtomicI32 = AtomicI32::new(2);

/// The system's allocator, counting the bytes that each thread holds.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(by: isize) {
    NOW.set(NOW.get() + by);
    PEAK.set(PEAK.get().max(NOW.get()));
}

/// Whether a request is turned down; it counts as if it had been granted.
fn turned_down(size: usize) -> bool {
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
fn say(text: &str) {
    raw_say(format!("{text}\n").as_bytes());
}

fn raw_say(text: &[u8]) {
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
fn prepare() {
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

fn millis() -> u64 {
    START.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

fn watch() {
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
struct Input {
    /// What an error has to name.
    path: PathBuf,
    /// Length of the harmed file.
    bytes: usize,
    /// Most bytes that the reader may hold at once, other than what [`Target::promised`] allows.
    most: usize,
}

/// One reader with its good files.
trait Target {
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
struct Fault {
    kind: String,
    text: String,
}

fn fault(kind: impl Into<String>, text: impl Into<String>) -> Fault {
    Fault { kind: kind.into(), text: text.into() }
}

/// What came of a case: the reader's answer or the fault, and the bytes that it held at the most.
struct Outcome {
    answer: Result<Result<(), String>, Fault>,
    peak: usize,
}

/// Runs one case and demands what holds for every reader.
fn examine(slot: usize, number: u64, target: &mut dyn Target, input: &Input, slowest: Duration) -> Outcome {
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
fn panicked(payload: &(dyn Any + Send)) -> Fault {
    let said = SAID.take().unwrap_or_else(|| format!("panicked somewhere ({:?})", payload.type_id()));
    fault(said.lines().next().unwrap_or_default(), said.replace('\n', " "))
}

/// What came of many cases.
#[derive(Default)]
struct Tally {
    cases: u64,
    accepted: u64,
    refused: u64,
    peak: usize,
    peak_at: u64,
    slowest: Duration,
    slowest_at: u64,
    took: Duration,
    /// By kind: how many, and the first, with its number.
    faults: BTreeMap<String, (u64, u64, String)>,
}

/// The generator of a case: neighbouring numbers and readers have nothing in common.
fn generator(slot: usize, number: u64) -> Rng {
    Rng::new(Rng::new(number ^ ((slot as u64) << 56)).next_u64())
}

/// Puts and reads the cases of these numbers.
fn campaign(slot: usize, numbers: Range<u64>, target: &mut dyn Target) -> Tally {
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
fn asked(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: wanted a whole number")))
}

/// The one case that is to be replayed, as reader and number.
fn replayed() -> Option<(String, u64)> {
    let text = std::env::var("GANVAE_FUZZ_CASE").ok()?;
    let parts = text.split_once(':').and_then(|(reader, n)| Some((reader.to_owned(), n.parse().ok()?)));
    let parts = parts.filter(|(reader, _)| READERS.contains(&reader.as_str()));
    Some(parts.unwrap_or_else(|| panic!("GANVAE_FUZZ_CASE={text}: wanted READER:NUMBER, of {}", READERS.join(", "))))
}

/// A folder in memory where there is such a thing: a case writes a file and reads several.
fn scratch() -> TempDir {
    let name = tempfile::Builder::new().prefix("ganvae-fuzz-").tempdir_in("/dev/shm");
    name.unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// The test of one reader: its good files are read as they are, then the harmed ones are tried.
fn fuzz<T: Target>(slot: usize, make: impl FnOnce(&Path) -> T + Send) {
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
const INTEGERS: [u64; 20] = [
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
const NUMBERS_AS_TEXT: &str = "0 -0 1 -1 3 0.5 1000000000 2147483647 2147483648 4294967295 4294967296 9007199254740992 \
    9007199254740993 9223372036854775807 9223372036854775808 -9223372036854775809 18446744073709551615 \
    18446744073709551616 1e308 -1e308 1e999 -1e999 1e-999 NaN nan -inf Infinity 0x7fffffffffffffff 0b1 1_000 1. 00";

/// What opens something that has to be closed again, or goes one level deeper.
const OPENERS: [&str; 10] = ["[", "{\"a\":", "{a=", "a.", "[[", "{", "\"", "'''", "[a.", "[1,"];

/// Bytes that are no text, or text that is more than it looks.
const ODD_TEXT: [&[u8]; 12] = [
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
fn pick(rng: &mut Rng, n: usize) -> usize {
    rng.below(n as u64) as usize
}

/// One word of a list with blanks between them.
fn word<'a>(rng: &mut Rng, list: &'a str) -> &'a str {
    let n = pick(rng, list.split(' ').count());
    list.split(' ').nth(n).unwrap_or_default()
}

/// A place in `len` bytes: often near the start, where headers are, sometimes near the end.
fn spot(rng: &mut Rng, len: usize) -> usize {
    match rng.below(8) {
        0..4 => pick(rng, len.min(40)),
        4 => len - 1 - pick(rng, len.min(16)),
        _ => pick(rng, len),
    }
}

/// A part of `len` bytes, mostly a short one.
fn part(rng: &mut Rng, len: usize) -> Range<usize> {
    let from = spot(rng, len);
    let most = if rng.below(4) == 0 { len - from } else { (len - from).min(16) };
    from..from + 1 + pick(rng, most)
}

fn harm_bytes(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
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
fn tokens(text: &[u8]) -> Vec<Range<usize>> {
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
fn harm_text(rng: &mut Rng, text: &mut Vec<u8>, words: &str) {
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
fn harm(rng: &mut Rng, good: &[u8], other: &[u8], words: Option<&str>) -> Vec<u8> {
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
struct Folder {
    dir: PathBuf,
    files: Vec<(String, Vec<u8>)>,
    changed: usize,
}

impl Folder {
    fn new(dir: PathBuf, files: Vec<(String, Vec<u8>)>) -> Self {
        fs::create_dir_all(&dir).unwrap();
        for (name, bytes) in &files {
            fs::write(dir.join(name), bytes).unwrap();
        }
        Folder { dir, files, changed: 0 }
    }

    /// Makes file `i` these bytes and all others good; gives its path.
    fn put(&mut self, i: usize, bytes: &[u8]) -> PathBuf {
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

/// What is accepted as a set of images is one.
fn whole(source: &Source) {
    let fits = |i: &Images| {
        assert!(i.count > 0 && (i.channels == 1 || i.channels == 3));
        assert_eq!(i.pixels.len(), i.count * i.image_len());
        assert!(i.labels.is_empty() || i.labels.len() == i.count);
        assert!(i.labels.iter().all(|&l| usize::from(l) < source.classes.len()), "a label without a class");
    };
    let (train, test) = (&source.train, &source.test);
    fits(train);
    fits(test);
    assert_eq!((train.channels, train.height, train.width), (test.channels, test.height, test.width));
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.next_u64() as u8).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
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
        let dir = &self.sets[self.at].dir;
        assert!(idx::is_idx_folder(dir));
        whole(&idx::load_folder(dir)?);
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
        assert!(cifar::is_cifar(&self.0.dir));
        let source = cifar::load_folder(&self.0.dir)?;
        whole(&source);
        assert_eq!((source.train.channels, source.train.height, source.train.width), (3, 32, 32));
        Ok(())
    }
}

/// Pictures: for every extension a folder of one plain picture and one harmed, both of 8x8 pixels.
struct Pictures {
    folders: Vec<Folder>,
    /// The folder that each good picture belongs in, and its bytes.
    seeds: Vec<(usize, Vec<u8>)>,
    at: usize,
    size: Option<(usize, usize)>,
    channels: Option<usize>,
}

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
    all.extend(BY_PILLOW.iter().map(|(extension, bytes)| (*extension, unhex(bytes))));
    all.push(("pbm", [&b"P4\n# a comment\n8 8\n"[..], &noise(2, 8)].concat()));
    all.push(("pbm", [&b"P1 8 8\n"[..], &b"0 1 ".repeat(32)].concat()));
    all
}

/// What `image` does not write either, all of 8x8 pixels, by Pillow: a lossy WebP file, one with transparency, one with
/// two frames, and a progressive JPEG file.
const BY_PILLOW: [(&str, &str); 4] = [
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
];

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// What is reserved for a frame on the word of its own header, before that is compared with the picture's. WebP: one of
/// 16383x16383 pixels in 3/2 bytes, and partitions of up to 16 MiB each. GIF: up to the reader's limit of four bytes
/// for each pixel, and its place in the palette beside them.
fn frame(head: &[u8]) -> usize {
    match head {
        [b'R', b'I', b'F', b'F', ..] => 3 * (1 << 27) + (128 << 20),
        [b'G', b'I', b'F', ..] => (256 << 20) / 4 * 5,
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
        Pictures { folders, seeds, at: 0, size: None, channels: None }
    }
}

impl Target for Pictures {
    fn seeds(&self) -> usize {
        self.seeds.len()
    }

    fn put(&mut self, seed: usize, rng: Option<&mut Rng>) -> Input {
        let (at, good) = &self.seeds[seed];
        (self.size, self.channels) = (None, None);
        let bytes = match rng {
            None => good.clone(),
            Some(rng) => {
                self.size = [None, None, None, Some((8, 8)), Some((5, 3)), Some((64, 48))][pick(rng, 6)];
                self.channels = [None, None, Some(1), Some(3)][pick(rng, 4)];
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
        let source = folder::load_folder(&self.folders[self.at].dir, self.size, self.channels)?;
        whole(&source);
        let (height, width) = self.size.unwrap_or((8, 8));
        assert_eq!((source.train.height, source.train.width), (height, width));
        assert!(self.channels.is_none_or(|c| c == source.train.channels));
        Ok(())
    }

    /// A picture that is scaled may take a few times what its header promises, up to the reader's limit of 256 MiB: as
    /// it is stored, as it is turned, without its transparency. Scaling has one more, which is as wide as the
    /// picture, as high as what is wanted, and of four floats. A picture that is not scaled is 8x8 or refused.
    fn promised(&self) -> usize {
        let path = self.folders[self.at].dir.join(&self.folders[self.at].files[1].0);
        let frame = frame(&fs::read(&path).unwrap_or_default());
        let Some((h, w)) = self.size else { return frame };
        let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
        let Some(decoder) = reader.ok().and_then(|r| r.into_decoder().ok()) else { return frame };
        let ((width, height), bytes) = (decoder.dimensions(), decoder.total_bytes());
        if width.max(height) > 1 << 15 || bytes > 256 << 20 {
            return frame;
        }
        frame + 4 * bytes as usize + 32 * width.max(height) as usize * h.max(w)
    }
}

/// The config file, and what is resolved from it.
struct ConfigFile {
    path: PathBuf,
    seeds: Vec<String>,
    model: ModelKind,
}

const CONFIG_WORDS: &str = "model vae gan preset arch conv mlp latent encoder-hidden decoder-hidden generator-hidden \
    base-width activation beta gan-loss ema epochs steps batch-size lr seed device tune deterministic threads data \
    data-dir image-size channels keep train-limit out run [run] \n[[lr]]\n true false \"\" [] {} [1,2] \"64x64\" \
    \"threads=99999999999\" \"auto,off\" \"products=blas\" 1979-05-27T07:32:00Z \"\"\" ''' = \n";

impl ConfigFile {
    fn new(dir: &Path) -> Self {
        let mut seeds: Vec<String> = Vec::new();
        for (model, preset) in [
            (ModelKind::Vae, "article"),
            (ModelKind::Vae, "pytorch-vae"),
            (ModelKind::Vae, "conv-vae"),
            (ModelKind::Gan, "article"),
            (ModelKind::Gan, "dcgan"),
        ] {
            let text = format!("model = '{model}'\npreset = '{preset}'\n");
            let (_, given) = Settings::from_toml(&text, Path::new("seed")).unwrap();
            let full = config::resolve(model, &given).unwrap().to_toml().unwrap();
            seeds.push(format!("{full}\n[run]\nganvae = '0.1.0'\nstarted = 'now'\n"));
        }
        seeds.push("# mine\nlr = 1e-3 # small\nbatch-size = 1_000\n".into());
        seeds.push("model = \"gan\"\nimage-size = '32x32'\nchannels = 1\ndata = '/no/é'\nthreads = 2\n".into());
        seeds.push("tune = 'threads=2,products=by-size'\ndeterministic = true\nencoder-hidden = [64, 32]\n".into());
        ConfigFile { path: dir.join("my.toml"), seeds, model: ModelKind::Vae }
    }
}

impl Target for ConfigFile {
    fn seeds(&self) -> usize {
        self.seeds.len()
    }

    fn put(&mut self, seed: usize, rng: Option<&mut Rng>) -> Input {
        let good = self.seeds[seed].as_bytes();
        let bytes = match rng {
            None => good.to_vec(),
            Some(rng) => {
                self.model = [ModelKind::Vae, ModelKind::Gan][pick(rng, 2)];
                let other = self.seeds[pick(rng, self.seeds.len())].as_bytes();
                harm(rng, good, other, Some(CONFIG_WORDS))
            }
        };
        fs::write(&self.path, &bytes).unwrap();
        // The list of all flags that is made to know the keys; a parser's tables, which are larger than its text.
        Input { path: self.path.clone(), bytes: bytes.len(), most: (2 << 20) + 256 * bytes.len() }
    }

    fn read(&mut self) -> Result<()> {
        let (kind, given) = Settings::read(&self.path).inspect_err(usage)?;
        let model = kind.unwrap_or(self.model);
        // What is refused here is a value, by the name of its flag: which file it came from is the caller's to know.
        let named = |e: &anyhow::Error| assert!(format!("{e:#}").contains("--"), "no flag is named: {e:#}");
        let resolved = config::resolve(model, &given).inspect_err(usage).inspect_err(named);
        let resolved = resolved.with_context(|| self.path.display().to_string())?;
        // What is accepted is kept in the run's folder, and has to come back from there as it was.
        let text = resolved.to_toml().expect("what was read can be written");
        let (kind, again) = Settings::from_toml(&text, &self.path).expect("what was written can be read");
        assert_eq!(kind, Some(model));
        let again = config::resolve(model, &again).expect("what was resolved resolves again");
        assert_eq!(again.to_toml().expect("and can be written"), text);
        Ok(())
    }
}

/// Every mistake in a config file is the caller's: exit code 2.
fn usage(e: &anyhow::Error) {
    assert!(e.is::<Usage>(), "not a usage error: {e:#}");
}

/// A model without networks: pieces of state under names.
struct Pieces(Vec<(Part, &'static str, Tensor)>);

impl Pieces {
    fn new() -> Self {
        let on = |kind| (kind, Device::Cpu);
        Pieces(vec![
            (Part::Model, "a.weight", Tensor::ones([2, 3], on(Kind::Float))),
            (Part::Model, "a.bias", Tensor::ones([2], on(Kind::Double))),
            (Part::Model, "count", Tensor::ones([0; 0], on(Kind::Int64))),
            (Part::Optimizer, "step", Tensor::ones([0; 0], on(Kind::Double))),
        ])
    }

    fn visit(&self, v: &mut dyn Visit) -> Result<()> {
        self.0.iter().try_for_each(|(part, name, t)| v.tensor(*part, name, t))
    }

    /// A checkpoint of these below `dir`; its folder.
    fn save(&self, dir: &Path) -> PathBuf {
        checkpoint::save(dir, State::new("vae".into(), 1), 3, &mut |v| self.visit(v)).unwrap()
    }
}

/// Weights of a checkpoint.
struct Weights {
    folder: Folder,
    seeds: Vec<Vec<u8>>,
    pieces: Pieces,
}

const SAFETENSORS_WORDS: &str = "F32 F64 I64 BF16 U8 F4 dtype shape data_offsets __metadata__ a.weight a.bias count \
    [0,0] [0,24] [18446744073709551615,2] [4294967296,4294967296] [] {} null \"\" , :";

impl Weights {
    fn new(dir: &Path) -> Self {
        let pieces = Pieces::new();
        let dir = pieces.save(dir);
        let saved = fs::read(dir.join("model.safetensors")).unwrap();
        // The same by another writer: metadata, another order, no padding.
        let header = "{\"__metadata__\":{\"format\":\"pt\"},\
            \"a.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},\
            \"a.bias\":{\"dtype\":\"F64\",\"shape\":[2],\"data_offsets\":[24,40]},\
            \"count\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[40,48]}}";
        let other = with_header(header.as_bytes(), &noise(3, 48));
        let folder = Folder::new(dir, vec![("model.safetensors".into(), saved.clone())]);
        Weights { folder, seeds: vec![saved, other], pieces }
    }
}

fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

impl Target for Weights {
    fn seeds(&self) -> usize {
        self.seeds.len()
    }

    fn put(&mut self, seed: usize, rng: Option<&mut Rng>) -> Input {
        let good = &self.seeds[seed];
        let bytes = match rng {
            None => good.clone(),
            Some(rng) => {
                let other = &self.seeds[pick(rng, self.seeds.len())];
                if rng.below(3) == 0 {
                    harm(rng, good, other, None)
                } else {
                    // The header harmed as text, its length right again.
                    let end = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
                    with_header(&harm(rng, &good[8..end], &other[8..], Some(SAFETENSORS_WORDS)), &good[end..])
                }
            }
        };
        let path = self.folder.put(0, &bytes);
        // The file, and the tables of its header, which are larger than their text.
        Input { path, bytes: bytes.len(), most: (64 << 10) + 256 * bytes.len() }
    }

    fn read(&mut self) -> Result<()> {
        checkpoint::load(&self.folder.dir, &[Part::Model], &mut |v| self.pieces.visit(v))
    }
}

/// Where a checkpoint's run stood.
struct StateFile {
    checkpoints: PathBuf,
    folder: Folder,
    seeds: Vec<Vec<u8>>,
    /// What state.sha256 holds for the first of them.
    sum: String,
}

const STATE_WORDS: &str = "format model step wall_s meter_images metrics_bytes files bytes sha256 settings rollbacks \
    best value model.safetensors optimizer.safetensors ../../../etc/passwd vae gan null true {} [] \"\" , :";

impl StateFile {
    fn new(dir: &Path) -> Self {
        let step = Pieces::new().save(dir);
        let saved = fs::read(step.join("state.json")).unwrap();
        let mut value: serde_json::Value = serde_json::from_slice(&saved).unwrap();
        let short = value.to_string().into_bytes();
        // What is not always there, and what a later version may add.
        value["best"] = serde_json::json!({"step": 1, "value": 9.5});
        value["settings"] = serde_json::json!({"lr": "0.001"});
        value["added"] = serde_json::json!([1, {"a": null}]);
        let folder = Folder::new(step, vec![("state.json".into(), saved.clone())]);
        let seeds = vec![saved, short, value.to_string().into_bytes()];
        let sum = fs::read_to_string(folder.dir.join("state.sha256")).unwrap();
        StateFile { checkpoints: dir.to_owned(), folder, seeds, sum }
    }
}

impl Target for StateFile {
    fn seeds(&self) -> usize {
        self.seeds.len()
    }

    fn put(&mut self, seed: usize, rng: Option<&mut Rng>) -> Input {
        let good = &self.seeds[seed];
        let (bytes, honest) = match rng {
            None => (good.clone(), true),
            Some(rng) => {
                let other = &self.seeds[pick(rng, self.seeds.len())];
                (harm(rng, good, other, Some(STATE_WORDS)), rng.below(8) > 0)
            }
        };
        let sum = hash::sha256([&bytes[..]]);
        // Harm that the checksum gives away is not looked at any further, so mostly it is made right again.
        let sum = if honest { sum } else { self.sum.clone() };
        fs::write(self.folder.dir.join("state.sha256"), sum).unwrap();
        self.folder.put(0, &bytes);
        // The checksum that state.json gives is held against its neighbour, and the sentence is about that one then.
        let path = self.folder.dir.clone();
        // Files are summed through a buffer of 1 MiB.
        Input { path, bytes: bytes.len(), most: (1 << 20) + (64 << 10) + 256 * bytes.len() }
    }

    fn read(&mut self) -> Result<()> {
        let (dir, state) = checkpoint::newest_whole(&self.checkpoints)?.expect("there is a checkpoint");
        assert_eq!(dir, self.folder.dir);
        assert!(state.files.contains_key("model.safetensors") && state.files.contains_key("optimizer.safetensors"));
        Ok(())
    }
}

/// The rows that a run has logged.
struct MetricsFile {
    path: PathBuf,
    seeds: Vec<String>,
}

const METRICS_WORDS: &str =
    "step epoch loss recon kl test_loss d_loss g_loss null true \"5\" {} [] , : }\n{ \n {\"step\":0}\n \"\"";

impl MetricsFile {
    fn new(dir: &Path) -> Self {
        let row = |model: &str, i: u64| match (model, i % 3) {
            ("vae", 2) => format!("{{\"step\":{i},\"epoch\":{},\"test_loss\":105.5,\"test_kl\":null}}\n", i / 3),
            ("vae", _) => {
                format!("{{\"step\":{i},\"epoch\":0.5,\"loss\":1.5e2,\"recon\":100,\"kl\":-0.0,\"lr\":1e-3}}\n")
            }
            _ => format!("{{\"step\":{},\"d_loss\":1.3,\"g_loss\":0.7,\"d_real\":0.1,\"d_fake\":null}}\n", 50 * i),
        };
        let rows = |model| (1..7).map(|i| row(model, i)).collect::<String>();
        let resumed = rows("vae") + &rows("vae")[..rows("vae").len() / 2] + "\n\n{\"step\":9,\"lo";
        MetricsFile { path: dir.join("metrics.jsonl"), seeds: vec![rows("vae"), rows("gan"), resumed, String::new()] }
    }
}

impl Target for MetricsFile {
    fn seeds(&self) -> usize {
        self.seeds.len()
    }

    fn put(&mut self, seed: usize, rng: Option<&mut Rng>) -> Input {
        let good = self.seeds[seed].as_bytes();
        let bytes = match rng {
            None => good.to_vec(),
            Some(rng) => {
                let other = self.seeds[pick(rng, self.seeds.len())].as_bytes();
                harm(rng, good, other, Some(METRICS_WORDS))
            }
        };
        fs::write(&self.path, &bytes).unwrap();
        // A number of two characters is a JSON value of dozens of bytes, in a list that doubles as it grows.
        Input { path: self.path.clone(), bytes: bytes.len(), most: (64 << 10) + 256 * bytes.len() }
    }

    fn read(&mut self) -> Result<()> {
        let metrics = curves::read_metrics(&self.path)?;
        for key in ["loss", "recon", "kl", "test_loss", "epoch", "d_loss", "g_loss", "d_real", "step", "lr"] {
            let series = metrics.series(key);
            assert!(series.iter().all(|p| p.0.is_finite() && p.1.is_finite()), "{key} is not finite");
            assert!(series.windows(2).all(|w| w[0].0 < w[1].0), "the steps of {key} do not rise");
        }
        Ok(())
    }
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

#[test]
fn config_files() {
    fuzz(3, ConfigFile::new);
}

#[test]
fn weights_of_checkpoints() {
    fuzz(4, Weights::new);
}

#[test]
fn states_of_checkpoints() {
    fuzz(5, StateFile::new);
}

#[test]
fn rows_of_metrics() {
    fuzz(6, MetricsFile::new);
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
    assert!(kind.contains("panicked at tests/fuzz.rs"), "{kind}");
    let index = found(fine(|| take([1usize][std::hint::black_box(7)])), long).unwrap();
    assert!(index.contains("panicked at tests/fuzz.rs"), "{index}");
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
