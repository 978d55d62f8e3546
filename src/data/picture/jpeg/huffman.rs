//! Huffman codes of a JPEG: tables that decode a code and the bits after it at once, and the bits of a scan.

/// Bits that the tables look up at once; longer codes are searched.
const LOOK: u32 = 10;
/// Bits of the table that skips coefficients.
const SKIP: u32 = 12;

/// A symbol as a table has it, in one word that is fast to look up; 0 for none.
#[derive(Clone, Copy, Default, PartialEq)]
pub struct Symbol(u32);

impl Symbol {
    const NONE: Symbol = Symbol(0);

    /// `code` of `length` bits, the first of `bits`, of which there are [`LOOK`]; with its value where that is whole in them.
    fn new(code: u8, length: u32, bits: u32, dc: bool) -> Self {
        let (run, size) = (u32::from(code >> 4), u32::from(code & 15));
        let total = length + size;
        let (mut value, mut left) = (0, size);
        let step = if size == 0 && run < 15 && !dc { 0 } else { run + 1 };
        if step == 0 {
            value = run;
        } else if size > 0 && total <= LOOK {
            (value, left) = (extended(bits >> (LOOK - total) & ((1 << size) - 1), size) as u32, 0);
        }
        Symbol(value << 16 | step << 10 | left << 6 | total)
    }

    /// Its value where [`Symbol::size`] is 0; for an end, the number in `EOBn`.
    pub fn value(self) -> i16 {
        (self.0 >> 16) as i16
    }

    /// For AC: how many coefficients it moves on, from 1; 0 for the end of a block or of a run of blocks.
    pub fn step(self) -> usize {
        (self.0 >> 10 & 31) as usize
    }

    /// Bits of its value that are still to be read.
    fn size(self) -> u32 {
        self.0 >> 6 & 15
    }

    /// Bits of its code and its value.
    fn total(self) -> u32 {
        self.0 & 63
    }

    /// Whether it ends a block.
    pub fn ends(self) -> bool {
        self.step() == 0 && self.value() == 0
    }
}

/// A Huffman table.
pub struct Table {
    /// By the next [`LOOK`] bits; none for a longer code.
    look: Box<[Symbol; 1 << LOOK]>,
    /// By the next [`SKIP`] bits: bits << 8 | end of block << 7 | coefficients, of all symbols that are whole in them.
    skip: Option<Box<[u16; 1 << SKIP]>>,
    /// For each length the first code after those of this length, aligned to 16 bits.
    limit: [u32; 17],
    /// For each length what is added to a code to give its place among the symbols.
    offset: [i32; 17],
    symbols: [u8; 256],
    dc: bool,
}

impl Table {
    /// A table of `counts[n - 1]` codes of n bits. None where these are no prefix code.
    pub fn new(counts: &[u8], symbols: &[u8], dc: bool) -> Option<Self> {
        let mut all = [0; 256];
        all.get_mut(..symbols.len())?.copy_from_slice(symbols);
        let look = Box::new([Symbol::NONE; 1 << LOOK]);
        let mut table = Table { look, skip: None, limit: [0; 17], offset: [0; 17], symbols: all, dc };
        let (mut code, mut place) = (0u32, 0);
        for (length, count) in (1u32..).zip(counts) {
            table.offset[length as usize] = place - code as i32;
            for _ in 0..*count {
                if code >= 1 << length {
                    return None;
                }
                if length <= LOOK {
                    let first = code << (LOOK - length);
                    for bits in first..first + (1 << (LOOK - length)) {
                        table.look[bits as usize] = Symbol::new(all[place as usize], length, bits, dc);
                    }
                }
                (code, place) = (code + 1, place + 1);
            }
            table.limit[length as usize] = code << (16 - length);
            code <<= 1;
        }
        // A DC value has at most 11 bits; 15 is what fits anywhere.
        (!dc || symbols.iter().all(|s| *s < 16)).then_some(table)
    }

    /// Makes the table that [`Bits::skip`] uses; worth it for a scan of many blocks.
    pub fn prepare_skip(&mut self) {
        let look = &self.look;
        self.skip.get_or_insert_with(|| {
            let mut skip = Box::new([0; 1 << SKIP]);
            for (all, to) in (0u32..).zip(skip.iter_mut()) {
                let (mut used, mut steps, mut end) = (0, 0, false);
                while !end && steps < 48 {
                    // The bits after those that are known are 0, so a symbol counts only if it ends before them.
                    let symbol = look[((all << used) & ((1 << SKIP) - 1)) as usize >> (SKIP - LOOK)];
                    let bits = symbol.total();
                    if symbol == Symbol::NONE || used + bits > SKIP || (symbol.step() == 0 && !symbol.ends()) {
                        break;
                    }
                    (used, steps, end) = (used + bits, steps + symbol.step() as u16, symbol.ends());
                }
                *to = (used as u16) << 8 | u16::from(end) << 7 | steps;
            }
            skip
        });
    }
}

/// The number that `size` bits stand for (T.81, F.2.2.1).
#[inline(always)]
fn extended(value: u32, size: u32) -> i32 {
    if value >> (size - 1) == 0 { value as i32 - (1 << size) + 1 } else { value as i32 }
}

/// Reads bits, high ones first; beyond the end they are 0.
pub struct Bits<'a> {
    /// With eight more bytes at the end.
    data: &'a [u8],
    at: usize,
    buffer: u64,
    have: u32,
}

impl<'a> Bits<'a> {
    pub fn new(data: &'a [u8], at: usize) -> Self {
        Bits { data, at, buffer: 0, have: 0 }
    }

    /// Bits from the start of the data to the next one.
    pub fn position(&self) -> usize {
        self.at * 8 - self.have as usize
    }

    /// Makes 56 bits ready.
    #[inline(always)]
    fn refill(&mut self) {
        if let Some(next) = self.data.get(self.at..self.at + 8).and_then(|b| b.first_chunk()) {
            self.buffer |= u64::from_be_bytes(*next) >> self.have;
        }
        self.at += ((63 - self.have) >> 3) as usize;
        self.have |= 56;
    }

    #[inline(always)]
    fn drop(&mut self, bits: u32) {
        self.buffer <<= bits;
        self.have -= bits;
    }

    /// The next `n` bits, from 1 to 16.
    #[inline(always)]
    pub fn take(&mut self, n: u32) -> u32 {
        if self.have < 32 {
            self.refill();
        }
        let value = (self.buffer >> (64 - n)) as u32;
        self.drop(n);
        value
    }

    /// The next code, without the bits of a value: progressive scans give these another meaning.
    pub fn code(&mut self, table: &Table) -> Option<u8> {
        if self.have < 32 {
            self.refill();
        }
        let (code, length) = self.search(table, 1)?;
        self.drop(length as u32);
        Some(code)
    }

    /// The next symbol and its value.
    #[inline(always)]
    pub fn symbol(&mut self, table: &Table) -> Option<(Symbol, i16)> {
        if self.have < 32 {
            self.refill();
        }
        let mut found = table.look[(self.buffer >> (64 - LOOK)) as usize];
        if found == Symbol::NONE {
            let (code, length) = self.search(table, LOOK as usize + 1)?;
            found = Symbol::new(code, length as u32, 0, table.dc);
        }
        let (size, total) = (found.size(), found.total());
        let mut value = found.value();
        if size > 0 {
            value = extended((self.buffer << (total - size) >> (64 - size)) as u32, size) as i16;
        }
        self.drop(total);
        Some((found, value))
    }

    /// A code of at least `from` bits, and its length.
    #[inline(never)]
    fn search(&self, table: &Table, from: usize) -> Option<(u8, usize)> {
        let next = (self.buffer >> 48) as u32;
        let length = (from..=16).find(|n| next < table.limit[*n])?;
        let place = (next >> (16 - length)) as i32 + table.offset[length];
        Some((*table.symbols.get(usize::try_from(place).ok()?)?, length))
    }

    /// Skips the coefficients of a block from `k` on. None where a code is none, or goes beyond the block.
    #[inline(always)]
    pub fn skip(&mut self, table: &Table, mut k: usize) -> Option<()> {
        while k < 64 {
            if self.have < 32 {
                self.refill();
            }
            if let Some(skip) = &table.skip {
                let many = skip[(self.buffer >> (64 - SKIP)) as usize];
                let (bits, end, steps) = (u32::from(many >> 8), many & 0x80 != 0, usize::from(many & 0x7f));
                if bits > 0 && k + steps + usize::from(end) <= 64 {
                    self.drop(bits);
                    if end {
                        return Some(());
                    }
                    k += steps;
                    continue;
                }
            }
            let (symbol, _) = self.symbol(table)?;
            if symbol.step() == 0 {
                return symbol.ends().then_some(());
            }
            k += symbol.step();
        }
        (k == 64).then_some(())
    }
}
