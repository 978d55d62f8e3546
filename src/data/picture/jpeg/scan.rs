//! The scans of a JPEG: from bits to coefficients (progressive) or to samples (sequential).

use anyhow::{Context, Result, bail, ensure};
use memchr::memchr;

use super::huffman::{Bits, Table};
use super::transform::transform;
use super::{Component, Head, ZIGZAG, cut_off, damaged};

const DATA: &str = "data";

/// The bits of a scan without the zeros that are stuffed behind 0xff.
struct Stretches {
    /// With eight bytes of padding.
    data: Vec<u8>,
    /// Where each stretch between restart markers ends.
    ends: Vec<usize>,
    /// Where the marker after it stands in the file.
    next: usize,
    /// Whether the file ends before such a marker.
    cut: bool,
}

/// Collects the data of a scan that begins at `at`.
fn collect(bytes: &[u8], mut at: usize) -> Result<Stretches> {
    let (mut data, mut ends) = (Vec::new(), Vec::new());
    let cut = loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(run) = memchr(0xff, rest) else {
            data.extend_from_slice(rest);
            at = bytes.len();
            break true;
        };
        data.extend_from_slice(&rest[..run]);
        at += run;
        match rest.get(run + 1) {
            None => break true,
            Some(0) => {
                data.push(0xff);
                at += 2;
            }
            Some(0xff) => at += 1,
            Some(marker @ 0xd0..=0xd7) => {
                ensure!(usize::from(marker - 0xd0) == ends.len() % 8, damaged(DATA));
                ends.push(data.len());
                at += 2;
            }
            Some(_) => break false,
        }
    };
    ends.push(data.len());
    data.extend([0; 8]);
    Ok(Stretches { data, ends, next: at, cut })
}

/// The parameters of a scan.
struct Scan {
    /// Its components, with the numbers of their tables.
    parts: Vec<Part>,
    /// Coefficients from `first` to `last` in zigzag order, and the bit that is sent.
    first: usize,
    last: usize,
    low: u32,
    /// Whether these coefficients were sent before to a higher bit.
    refines: bool,
}

#[derive(Clone, Copy)]
struct Part {
    component: usize,
    dc: usize,
    ac: usize,
}

fn parameters(head: &Head, data: &[u8]) -> Result<Scan> {
    let wrong = || damaged("scan header");
    let (count, rest) = data.split_first().with_context(wrong)?;
    let count = usize::from(*count);
    ensure!((1..=4).contains(&count) && rest.len() == 2 * count + 3, wrong());
    let mut parts: Vec<Part> = Vec::new();
    for pair in rest[..2 * count].chunks_exact(2) {
        let component = head.components.iter().position(|c| c.id == pair[0]).with_context(wrong)?;
        ensure!(parts.iter().all(|p| p.component != component) && pair[1] & 0xcc == 0, wrong());
        parts.push(Part { component, dc: usize::from(pair[1] >> 4), ac: usize::from(pair[1] & 15) });
    }
    let [first, last, bits] = [0, 1, 2].map(|i| usize::from(rest[2 * count + i]));
    let (high, low) = (bits >> 4, bits & 15);
    let scan = Scan { parts, first, last, low: low as u32, refines: high != 0 };
    if head.progressive {
        let dc = first == 0 && last == 0;
        ensure!(dc || (first > 0 && first <= last && last < 64 && count == 1), wrong());
        ensure!(low < 14 && (high == 0 || high == low + 1), wrong());
        // What is refined was sent to the bit before, and what is sent first was not sent yet.
        let before = if high == 0 { 255 } else { high as u8 };
        for part in &scan.parts {
            let sent = &head.components[part.component].sent;
            ensure!(sent[first..=last].iter().all(|s| *s == before), wrong());
            ensure!(dc || sent[0] != 255, wrong());
        }
    } else {
        // Some encoders write other numbers here; a sequential scan has all coefficients.
        ensure!(scan.parts.iter().all(|p| head.components[p.component].sent[0] == 255), wrong());
    }
    Ok(scan)
}

for_this_processor! {
    /// Decodes the scan whose header is `data` and whose bits begin at `at`; gives where the next marker stands.
    pub fn decode(head: &mut Head, data: &[u8], bytes: &[u8], at: usize) -> Result<usize> {
        let scan = parameters(head, data)?;
        let stretches = collect(bytes, at)?;
        prepare(head, &scan, stretches.data.len())?;
        let components = &mut head.components;
        // An MCU is one block of a component alone, or h*v blocks of each.
        let alone = scan.parts.len() == 1;
        let (across, down) = match &scan.parts[..] {
            [one] => components[one.component].blocks,
            _ => {
                let c = &components[scan.parts[0].component];
                (c.stride / c.h, c.rows / c.v)
            }
        };
        let mut state = State { bits: Bits::new(&stretches.data, 0), predictions: [0; 4], end_run: 0 };
        let (mut ends, mut left) = (stretches.ends.iter(), 0);
        let mut end = 0;
        let faulty = || if stretches.cut { cut_off() } else { bail!(damaged(DATA)) };
        for mcu in 0..across * down {
            if left == 0 {
                if mcu > 0 && !used_up(&state, &stretches.data, end) {
                    return faulty();
                }
                let start = end;
                let Some(next) = ends.next() else { return faulty() };
                end = *next;
                state = State { bits: Bits::new(&stretches.data, start), predictions: [0; 4], end_run: 0 };
                left = if head.restart == 0 { across * down } else { head.restart };
            }
            left -= 1;
            let (column, row) = (mcu % across, mcu / across);
            for (i, part) in scan.parts.iter().enumerate() {
                let c = &mut components[part.component];
                let (h, v) = if alone { (1, 1) } else { (c.h, c.v) };
                for block in 0..h * v {
                    let at = (row * v + block / h, column * h + block % h);
                    let tables = (head.dc[part.dc].as_ref(), head.ac[part.ac].as_ref());
                    let done = match head.progressive {
                        false => state.sequential(c, i, tables, head.quantisers[c.quantiser].as_ref(), at),
                        true => state.progressive(c, i, tables, &scan, at),
                    };
                    if done.is_none() {
                        return faulty();
                    }
                }
            }
            // Beyond the end all bits are 0, of which a picture of any size can be made.
            if state.bits.position() > 8 * end {
                return faulty();
            }
        }
        if !used_up(&state, &stretches.data, end) || ends.any(|next| *next > end) {
            return faulty();
        }
        for part in &scan.parts {
            let all = if head.progressive { scan.first..=scan.last } else { 0..=63 };
            components[part.component].sent[all].fill(if head.progressive { scan.low as u8 } else { 0 });
        }
        Ok(stretches.next)
    }
}

/// Checks that the scan has the tables it needs.
fn prepare(head: &mut Head, scan: &Scan, bytes: usize) -> Result<()> {
    for part in &scan.parts {
        let dc = scan.first == 0 && !(head.progressive && scan.refines);
        let ac = !head.progressive || scan.first > 0;
        ensure!(!dc || head.dc[part.dc].is_some(), "it has no Huffman table for its data");
        ensure!(!ac || head.ac[part.ac].is_some(), "it has no Huffman table for its data");
        let c = &head.components[part.component];
        ensure!(head.quantisers[c.quantiser].is_some(), "it has no quantisation table for its data");
        if let (false, true, Some(table)) = (head.progressive, c.wanted < 63 && bytes > 1 << 14, &mut head.ac[part.ac])
        {
            table.prepare_skip();
        }
    }
    Ok(())
}

/// Whether a stretch that ends at byte `end` is used up: nothing was read beyond it, and nothing is left but padding, which
/// some cameras write as bytes of one value.
fn used_up(state: &State, data: &[u8], end: usize) -> bool {
    let used = state.bits.position().div_ceil(8);
    used <= end && state.end_run == 0 && data[used..end].windows(2).all(|pair| pair[0] == pair[1])
}

/// Where the decoder is in a stretch.
struct State<'a> {
    bits: Bits<'a>,
    /// The last DC value of each component of the scan.
    predictions: [i32; 4],
    /// Blocks that have no more coefficients in this scan.
    end_run: u32,
}

type Tables<'t> = (Option<&'t Table>, Option<&'t Table>);

impl State<'_> {
    /// One block of a sequential scan, from bits to samples. None where the data are damaged.
    #[inline(always)]
    fn sequential(
        &mut self,
        c: &mut Component,
        i: usize,
        tables: Tables,
        quantiser: Option<&[u16; 64]>,
        (row, column): (usize, usize),
    ) -> Option<()> {
        let (dc, ac, quantiser) = (tables.0?, tables.1?, quantiser?);
        let mut block = [0i16; 64];
        self.predictions[i] = self.predictions[i].wrapping_add(self.bits.symbol(dc)?.1.into());
        block[0] = self.predictions[i] as i16;
        let (mut k, mut last) = (1, 0);
        loop {
            if k > c.wanted {
                self.bits.skip(ac, k)?;
                break;
            }
            let (symbol, value) = self.bits.symbol(ac)?;
            if symbol.step() == 0 {
                if !symbol.ends() {
                    return None;
                }
                break;
            }
            k += symbol.step();
            last = k - 1;
            block[usize::from(*ZIGZAG.get(last)?)] = value;
        }
        let at = (row * c.side.1 * c.stride + column) * c.side.0;
        transform(&block, quantiser, last, c.side, &mut c.samples[at..], c.stride * c.side.0);
        Some(())
    }

    /// One block of a progressive scan.
    fn progressive(
        &mut self,
        c: &mut Component,
        i: usize,
        tables: Tables,
        scan: &Scan,
        (row, column): (usize, usize),
    ) -> Option<()> {
        let at = 64 * (row * c.stride + column);
        let block: &mut [i16; 64] = c.coefficients.get_mut(at..)?.first_chunk_mut()?;
        let bit = 1i16 << scan.low;
        match (scan.first, scan.refines) {
            (0, false) => {
                self.predictions[i] = self.predictions[i].wrapping_add(self.bits.symbol(tables.0?)?.1.into());
                block[0] = (self.predictions[i] << scan.low) as i16;
            }
            (0, true) => block[0] |= self.bits.take(1) as i16 * bit,
            (_, false) => self.first_bits(block, tables.1?, scan)?,
            (_, true) => self.next_bit(block, tables.1?, scan, bit)?,
        }
        Some(())
    }

    /// A run of blocks that end here: `EOBn`.
    fn start_run(&mut self, n: u8) {
        self.end_run = (1 << n) + if n > 0 { self.bits.take(n.into()) } else { 0 };
    }

    /// The first bits of AC coefficients (T.81, G.1.2.2).
    fn first_bits(&mut self, block: &mut [i16; 64], ac: &Table, scan: &Scan) -> Option<()> {
        if self.end_run > 0 {
            self.end_run -= 1;
            return Some(());
        }
        let mut k = scan.first;
        while k <= scan.last {
            let (symbol, value) = self.bits.symbol(ac)?;
            if symbol.step() == 0 {
                self.start_run(value as u8);
                self.end_run -= 1;
                return Some(());
            }
            k += symbol.step();
            if k - 1 > scan.last {
                return None;
            }
            block[usize::from(ZIGZAG[k - 1])] = (i32::from(value) << scan.low) as i16;
        }
        Some(())
    }

    /// One more bit of AC coefficients (T.81, G.1.2.3).
    fn next_bit(&mut self, block: &mut [i16; 64], ac: &Table, scan: &Scan, bit: i16) -> Option<()> {
        let mut k = scan.first;
        while self.end_run == 0 && k <= scan.last {
            let code = self.bits.code(ac)?;
            let (mut run, size) = (code >> 4, code & 15);
            let mut new = 0;
            match size {
                0 if run < 15 => {
                    self.start_run(run);
                    break;
                }
                0 => {}
                1 => new = if self.bits.take(1) == 1 { bit } else { -bit },
                _ => return None,
            }
            // Past `run` coefficients that are still 0; the others get their bit.
            loop {
                let value = &mut block[usize::from(*ZIGZAG.get(k).filter(|_| k <= scan.last)?)];
                k += 1;
                if *value != 0 {
                    self.correct(value, bit);
                } else if run == 0 {
                    *value = new;
                    break;
                } else {
                    run -= 1;
                }
            }
        }
        if self.end_run > 0 {
            for &at in &ZIGZAG[k..=scan.last] {
                let value = &mut block[usize::from(at)];
                if *value != 0 {
                    self.correct(value, bit);
                }
            }
            self.end_run -= 1;
        }
        Some(())
    }

    fn correct(&mut self, value: &mut i16, bit: i16) {
        if self.bits.take(1) == 1 && *value & bit == 0 {
            *value = value.wrapping_add(if *value > 0 { bit } else { -bit });
        }
    }
}

for_this_processor! {
    /// The samples of a progressive picture, after its last scan.
    pub fn transform_all(head: &mut Head) -> Result<()> {
        for c in &mut head.components {
            let quantiser = head.quantisers[c.quantiser].as_ref().with_context(|| damaged("quantisation table"))?;
            for (i, block) in c.coefficients.as_chunks().0.iter().enumerate() {
                let (row, column) = (i / c.stride, i % c.stride);
                let at = (row * c.side.1 * c.stride + column) * c.side.0;
                transform(block, quantiser, 63, c.side, &mut c.samples[at..], c.stride * c.side.0);
            }
        }
        Ok(())
    }
}
