//! Checks that the entropy-coded data of a JPEG scan contains all its blocks, for sequential and
//! progressive Huffman coding.
//!
//! This is a decoder without arithmetic (ITU-T T.81, annexes F and G): it follows the Huffman codes
//! and skips the bits of the coefficients. It records only which coefficients are non-zero, because
//! refinement scans contain one more bit for each of these.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

/// The maximum number of bytes after the last block of a scan. Some cameras write padding there.
const MAX_SURPLUS: usize = 256;

/// Huffman tables by class (0: DC, 1: AC) and number.
pub(super) type Tables = [[Option<Table>; 4]; 2];

/// A colour channel.
pub(super) struct Component {
    /// The identifier by which scans name the channel.
    pub id: u8,
    /// The number of blocks per MCU along the horizontal axis.
    pub across: usize,
    /// The number of blocks per MCU along the vertical axis.
    pub down: usize,
    /// Whether a scan contained the channel's DC coefficients.
    pub is_seen: bool,
    /// The number of blocks of the channel along each axis.
    blocks: [usize; 2],
    /// One bit mask of non-zero coefficients per block. Empty until a scan contains only AC
    /// coefficients.
    nonzero: Vec<u64>,
}

impl Component {
    /// Creates a channel with `across` × `down` blocks per MCU.
    pub fn new(id: u8, across: usize, down: usize) -> Component {
        Component { id, across, down, is_seen: false, blocks: [0; 2], nonzero: Vec::new() }
    }
}

/// The size of a picture and its channels.
pub(super) struct Frame {
    /// The channels, in the order of the frame header.
    pub components: Vec<Component>,
    /// Whether the picture is coded in progressive scans.
    pub is_progressive: bool,
    /// The number of MCUs along each axis.
    mcus: [usize; 2],
}

impl Frame {
    /// Creates the frame of a picture of `[width, height]` pixels. The first channel must have the
    /// finest sampling.
    pub fn new(size: [usize; 2], mut components: Vec<Component>, is_progressive: bool) -> Frame {
        let finest = [components[0].across, components[0].down];
        let along = |axis: usize, sampling: usize| (size[axis] * sampling).div_ceil(finest[axis]).div_ceil(8);
        for component in &mut components {
            component.blocks = [along(0, component.across), along(1, component.down)];
        }
        let mcus = [0, 1].map(|axis| size[axis].div_ceil(8 * finest[axis]));
        Frame { components, is_progressive, mcus }
    }

    /// Whether the decoder correctly reads sequential scans that contain only some of the channels.
    /// It does so only if every channel has one block per MCU vertically and, when several channels
    /// share a scan, also horizontally.
    pub fn has_readable_scans(&self, channels: &[(usize, [usize; 2])]) -> bool {
        let is_narrow =
            |(channel, _): &(usize, _)| channels.len() == 1 || self.components[*channel].across == 1;
        self.components.iter().all(|component| component.down == 1) && channels.iter().all(is_narrow)
    }

    /// Returns the number of blocks of a channel per MCU. It is one if the channel is alone in its
    /// scan.
    fn blocks_per_mcu(&self, channel: usize, band: &Band) -> usize {
        let component = &self.components[channel];
        if band.channels.len() == 1 { 1 } else { component.across * component.down }
    }
}

/// The channels and the coefficients that a scan contains.
pub(super) struct Band {
    /// The index of each channel, with the numbers of its DC and AC tables.
    pub channels: Vec<(usize, [usize; 2])>,
    /// The first coefficient in zigzag order.
    pub start: u8,
    /// The last coefficient in zigzag order.
    pub end: u8,
    /// Whether the scan adds one more bit to coefficients of earlier scans.
    pub is_refinement: bool,
}

/// A Huffman table. For each value of the next 16 bits, it contains the length of the code at their
/// start (0 if there is no such code) and the code's symbol.
pub(super) struct Table(Vec<(u8, u8)>);

impl Table {
    /// Creates a table with `counts[n]` codes of `n + 1` bits.
    pub fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Table> {
        let mut entries = Vec::with_capacity(1 << 16);
        let mut symbols = symbols.iter();
        for (length, &count) in (1..).zip(counts) {
            for symbol in symbols.by_ref().take(usize::from(count)) {
                entries.resize(entries.len() + (1 << (16 - length)), (length, *symbol));
            }
        }
        ensure!(entries.len() <= 1 << 16, "a Huffman table has too many codes");
        entries.resize(1 << 16, (0, 0));
        Ok(Table(entries))
    }
}

/// A bit reader. The highest bit of each byte comes first.
struct Bits<'a> {
    data: &'a [u8],
    /// The number of bytes that were moved to the buffer so far.
    at: usize,
    /// The buffer, whose lowest `count` bits are the next bits.
    buffer: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(data: &'a [u8]) -> Bits<'a> {
        Bits { data, at: 0, buffer: 0, count: 0 }
    }

    fn fill(&mut self) {
        while let (true, Some(byte)) = (self.count <= 48, self.data.get(self.at)) {
            self.buffer = self.buffer << 8 | u64::from(*byte);
            (self.at, self.count) = (self.at + 1, self.count + 8);
        }
    }

    /// Consumes and returns the next `n` bits, at most 16.
    fn take(&mut self, n: u8) -> Result<usize> {
        if self.count < u32::from(n) {
            self.fill();
        }
        self.count = self.count.checked_sub(u32::from(n)).context("it is cut short: blocks are missing")?;
        Ok((self.buffer >> self.count) as usize & ((1 << n) - 1))
    }

    /// Consumes the next code and returns its symbol.
    fn symbol(&mut self, table: &Table) -> Result<u8> {
        if self.count < 16 {
            self.fill();
        }
        // The lookup may read zeros after the last bit, but `take` must not consume them.
        let ahead = match self.count.checked_sub(16) {
            Some(behind) => self.buffer >> behind,
            None => self.buffer << (16 - self.count),
        };
        let (length, symbol) = table.0[ahead as usize & 0xFFFF];
        ensure!(length > 0, "a code is missing from its Huffman table");
        self.take(length)?;
        Ok(symbol)
    }

    /// Returns the number of complete bytes that were not consumed.
    fn surplus(&self) -> usize {
        self.data.len() - self.at + self.count as usize / 8
    }
}

/// Walks through a scan whose entropy-coded data is at the start of `data`, and returns the length
/// of that data.
///
/// # Errors
/// If blocks are missing, codes are invalid, or many more bytes follow than the blocks need.
pub(super) fn check(
    data: &[u8],
    frame: &mut Frame,
    band: &Band,
    tables: &Tables,
    restart_interval: usize,
) -> Result<usize> {
    let n_mcus: usize = match band.channels[..] {
        [(channel, _)] => frame.components[channel].blocks.iter().product(),
        _ => frame.mcus.iter().product(),
    };
    let interval = if restart_interval == 0 { n_mcus } else { restart_interval };
    let (mut at, mut done, mut restarts) = (0, 0, 0);
    while done < n_mcus {
        if done > 0 {
            at += restart_marker(&data[at..], restarts)?;
            restarts += 1;
        }
        let (bytes, length) = unstuffed(&data[at..]);
        let mut bits = Bits::new(&bytes);
        let until = n_mcus.min(done + interval);
        walk(&mut bits, done..until, frame, band, tables)?;
        let surplus = bits.surplus();
        ensure!(surplus <= MAX_SURPLUS, "{surplus} bytes follow the last block");
        (at, done) = (at + length, until);
    }
    Ok(at)
}

/// Checks that the expected restart marker comes next, and returns its length including the fill
/// bytes before it.
fn restart_marker(data: &[u8], restarts: usize) -> Result<usize> {
    let fill = data.iter().take_while(|&&byte| byte == 0xFF).count();
    let expected = 0xD0 + (restarts % 8) as u8;
    ensure!(
        fill > 0 && data.get(fill) == Some(&expected),
        "it is cut short: restart marker {restarts} is missing"
    );
    Ok(fill + 1)
}

/// Returns the entropy-coded bytes up to the next marker, without the zeros that are stuffed after
/// 0xFF, and their length including these zeros.
fn unstuffed(data: &[u8]) -> (Vec<u8>, usize) {
    let end = data.windows(2).position(|pair| pair[0] == 0xFF && pair[1] != 0).unwrap_or(data.len());
    let mut bytes = Vec::with_capacity(end);
    let mut stuffed = data[..end].iter();
    while let Some(&byte) = stuffed.next() {
        bytes.push(byte);
        if byte == 0xFF {
            stuffed.next();
        }
    }
    (bytes, end)
}

/// Walks through the blocks of some MCUs.
fn walk(bits: &mut Bits, mcus: Range<usize>, frame: &mut Frame, band: &Band, tables: &Tables) -> Result<()> {
    let table = |class: usize, slot: usize| {
        let table = tables[class].get(slot).and_then(Option::as_ref);
        table.with_context(|| format!("Huffman table {slot} is missing"))
    };
    if band.start == 0 {
        for (channel, _) in &band.channels {
            frame.components[*channel].is_seen = true;
        }
    }
    if let (true, [(channel, [_, ac])]) = (band.start > 0, &band.channels[..]) {
        let component = &mut frame.components[*channel];
        component.nonzero.resize(component.blocks.iter().product(), 0);
        let (ac, mut end_of_band) = (table(1, *ac)?, 0);
        for nonzero in &mut component.nonzero[mcus] {
            match band.is_refinement {
                false => first_bits(bits, ac, band, nonzero, &mut end_of_band)?,
                true => refined_bits(bits, ac, band, nonzero, &mut end_of_band)?,
            }
        }
        return Ok(());
    }
    if band.is_refinement {
        let blocks = band.channels.iter().map(|(channel, _)| frame.blocks_per_mcu(*channel, band));
        let blocks: usize = blocks.sum();
        return mcus.flat_map(|_| 0..blocks).try_for_each(|_| bits.take(1).map(drop));
    }
    let channels = band.channels.iter().map(|&(channel, [dc, ac])| {
        let ac = if frame.is_progressive { None } else { Some(table(1, ac)?) };
        Ok((frame.blocks_per_mcu(channel, band), table(0, dc)?, ac))
    });
    let channels = channels.collect::<Result<Vec<_>>>()?;
    for _ in mcus {
        for &(blocks, dc, ac) in &channels {
            for _ in 0..blocks {
                block(bits, dc, ac)?;
            }
        }
    }
    Ok(())
}

/// Skips the DC coefficient of a block and, in a sequential JPEG, also its AC coefficients.
fn block(bits: &mut Bits, dc: &Table, ac: Option<&Table>) -> Result<()> {
    let size = bits.symbol(dc)?;
    ensure!(size <= 16, "a DC coefficient has {size} bits");
    bits.take(size)?;
    let Some(ac) = ac else { return Ok(()) };
    let mut at = 1;
    while at < 64 {
        let symbol = bits.symbol(ac)?;
        match (symbol >> 4, symbol & 15) {
            (15, 0) => at += 16,
            (_, 0) => return Ok(()),
            (zeros, size) => {
                at += zeros + 1;
                ensure!(at <= 64, "a block has more than 64 coefficients");
                bits.take(size)?;
            }
        }
    }
    Ok(())
}

/// Skips a block's AC coefficients in their first scan. `end_of_band` is the number of following
/// blocks without coefficients.
fn first_bits(
    bits: &mut Bits,
    ac: &Table,
    band: &Band,
    nonzero: &mut u64,
    end_of_band: &mut usize,
) -> Result<()> {
    if *end_of_band > 0 {
        *end_of_band -= 1;
        return Ok(());
    }
    let mut at = band.start;
    while at <= band.end {
        let symbol = bits.symbol(ac)?;
        match (symbol >> 4, symbol & 15) {
            (15, 0) => at += 16,
            (run, 0) => {
                *end_of_band = (1 << run) - 1 + bits.take(run)?;
                return Ok(());
            }
            (zeros, size) => {
                at += zeros;
                ensure!(at < 64, "a block has more than 64 coefficients");
                bits.take(size)?;
                *nonzero |= 1 << at;
                at += 1;
            }
        }
    }
    Ok(())
}

/// Skips a block in a refinement scan of AC coefficients: one bit per non-zero coefficient, and the
/// coefficients that become non-zero.
fn refined_bits(
    bits: &mut Bits,
    ac: &Table,
    band: &Band,
    nonzero: &mut u64,
    end_of_band: &mut usize,
) -> Result<()> {
    let mut at = band.start;
    while *end_of_band == 0 && at <= band.end {
        let symbol = bits.symbol(ac)?;
        let (mut zeros, size) = (symbol >> 4, symbol & 15);
        match size {
            0 if zeros < 15 => {
                *end_of_band = (1 << zeros) + bits.take(zeros)?;
                break;
            }
            0 => {}
            1 => drop(bits.take(1)?),
            _ => bail!("a coefficient of a refinement scan has {size} bits, wanted 1"),
        }
        while at <= band.end {
            if *nonzero >> at & 1 == 1 {
                bits.take(1)?;
            } else if zeros == 0 {
                break;
            } else {
                zeros -= 1;
            }
            at += 1;
        }
        if size == 1 && at < 64 {
            *nonzero |= 1 << at;
        }
        at += 1;
    }
    if *end_of_band > 0 {
        let left = (at..=band.end).filter(|&at| *nonzero >> at & 1 == 1).count();
        (0..left).try_for_each(|_| bits.take(1).map(drop))?;
        *end_of_band -= 1;
    }
    Ok(())
}
