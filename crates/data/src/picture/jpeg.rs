//! Decodes JPEG pictures and rejects those with missing blocks.
//!
//! Decoders fill missing parts of a JPEG with grey; Pillow and browsers do so too if the end marker
//! is present. To detect a truncated picture before its pixels are decoded, [`check`] walks through
//! its markers, and [`scan`](super::scan) walks through its entropy-coded data.

use std::io::Cursor;

use anyhow::{Context, Result, bail, ensure};
use image::codecs::jpeg::JpegDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder};

use super::decode::{DAMAGED, check_size};
use super::exif;
use super::scan::{self, Band, Component, Frame, Table, Tables};

/// The maximum number of scans. A small scan can take as long to decode as a large one.
const MAX_SCANS: usize = 100;
/// The maximum number of Huffman tables. Preparing a table of 18 bytes takes as long as decoding
/// thousands of pixels. A sequential picture has four tables, and each scan of a progressive one
/// may have up to eight.
const MAX_TABLES: usize = 8 * MAX_SCANS;

/// Decodes a picture and returns its EXIF orientation.
pub(super) fn decode(bytes: &[u8], max_pixels: u64) -> Result<(DynamicImage, Orientation)> {
    let orientation = check(bytes, max_pixels)?;
    let decoder = JpegDecoder::new(Cursor::new(bytes)).context("this kind of JPEG cannot be read")?;
    check_size(decoder.dimensions(), max_pixels)?;
    Ok((DynamicImage::from_decoder(decoder).context(DAMAGED)?, orientation))
}

/// The information from the markers before a scan.
#[derive(Default)]
struct Header {
    frame: Option<Frame>,
    tables: Tables,
    /// The number of Huffman tables so far, including those that were replaced.
    n_tables: usize,
    restart_interval: usize,
    orientation: Option<Orientation>,
}

/// Walks through a JPEG up to its end marker and returns its orientation.
///
/// # Errors
/// If any data is missing, or the decoder would decode the picture incorrectly.
fn check(bytes: &[u8], max_pixels: u64) -> Result<Orientation> {
    let mut header = Header::default();
    let (mut at, mut scans) = (2, 0);
    loop {
        let marker = next_marker(bytes, &mut at).context(DAMAGED)?;
        match marker {
            0xD9 => break,
            0x01 | 0xD0..=0xD8 => {}
            0xDA => {
                scans += 1;
                ensure!(scans <= MAX_SCANS, "it has more than {MAX_SCANS} scans");
                let band = header.band(segment(bytes, &mut at).context(DAMAGED)?)?;
                let frame = header.frame.as_mut().context("it has a scan before its frame header")?;
                let length = scan::check(&bytes[at..], frame, &band, &header.tables, header.restart_interval);
                at += length.context(DAMAGED)?;
            }
            _ => header.read(marker, segment(bytes, &mut at).context(DAMAGED)?, max_pixels)?,
        }
    }
    let frame = header.frame.context("it has no frame header").context(DAMAGED)?;
    let is_complete = frame.components.iter().all(|component| component.is_seen);
    ensure!(is_complete, "{DAMAGED}: a colour channel is missing");
    Ok(header.orientation.unwrap_or(Orientation::NoTransforms))
}

/// Returns the code of the next marker. Unknown bytes before it are skipped, as all decoders do.
fn next_marker(bytes: &[u8], at: &mut usize) -> Result<u8> {
    let rest = bytes.get(*at..).unwrap_or_default();
    let found = rest.windows(2).position(|pair| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xFF));
    let found = found.context("it is cut short: the end marker is missing")?;
    *at += found + 2;
    Ok(rest[found + 1])
}

/// Returns the segment after a marker, without its length field.
fn segment<'a>(bytes: &'a [u8], at: &mut usize) -> Result<&'a [u8]> {
    let cut = "it is cut short within its header";
    let length = bytes.get(*at..*at + 2).context(cut)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let segment = bytes.get(*at + 2..*at + length.max(2)).context(cut)?;
    *at += length.max(2);
    Ok(segment)
}

impl Header {
    fn read(&mut self, marker: u8, segment: &[u8], max_pixels: u64) -> Result<()> {
        match marker {
            0xC0..=0xC2 => {
                ensure!(self.frame.is_none(), "it has two frame headers");
                self.frame = Some(frame(segment, marker == 0xC2, max_pixels)?);
            }
            0xC4 => self.read_tables(segment)?,
            0xDD => {
                let &[high, low, ..] = segment else { bail!("its restart interval is cut short") };
                self.restart_interval = usize::from(u16::from_be_bytes([high, low]));
            }
            // Of several EXIF blocks, the first one counts, as in Pillow.
            0xE1 if segment.starts_with(b"Exif\0\0") && self.orientation.is_none() => {
                self.orientation = Some(exif::orientation(segment));
            }
            0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                bail!("lossless, hierarchical and arithmetic-coded JPEGs cannot be read")
            }
            _ => {}
        }
        Ok(())
    }

    fn read_tables(&mut self, mut segment: &[u8]) -> Result<()> {
        while let Some((&place, rest)) = segment.split_first() {
            self.n_tables += 1;
            ensure!(self.n_tables <= MAX_TABLES, "it has more than {MAX_TABLES} Huffman tables");
            let (counts, rest) = rest.split_first_chunk::<16>().context("a Huffman table is cut short")?;
            let n = counts.iter().map(|&count| usize::from(count)).sum();
            let symbols = rest.get(..n).context("a Huffman table is cut short")?;
            let [class, slot] = [usize::from(place >> 4), usize::from(place & 15)];
            let table = self.tables.get_mut(class).and_then(|class| class.get_mut(slot));
            *table.context("a Huffman table has an invalid number")? = Some(Table::new(counts, symbols)?);
            segment = &rest[n..];
        }
        Ok(())
    }

    /// Parses a scan header: the coefficients and the channels that the scan contains.
    fn band(&self, segment: &[u8]) -> Result<Band> {
        let cut = "the header of a scan is cut short";
        let n = usize::from(*segment.first().context(cut)?);
        ensure!(segment.len() >= 4 + 2 * n, cut);
        let frame = self.frame.as_ref().context("it has a scan before its frame header")?;
        let channel = |pair: &[u8; 2]| {
            let index = frame.components.iter().position(|component| component.id == pair[0]);
            let index = index.context("a scan has a colour channel that the picture does not have")?;
            Ok((index, [usize::from(pair[1] >> 4), usize::from(pair[1] & 15)]))
        };
        let channels =
            segment[1..1 + 2 * n].as_chunks::<2>().0.iter().map(channel).collect::<Result<Vec<_>>>()?;
        let &[start, end, bits] = &segment[1 + 2 * n..4 + 2 * n] else { bail!(cut) };
        let (start, end) = if frame.is_progressive { (start, end) } else { (0, 63) };
        ensure!(start <= end && end < 64, "a scan has coefficients {start} to {end} of 64");
        ensure!(!channels.is_empty(), "a scan has no colour channel");
        ensure!(
            start == 0 || channels.len() == 1,
            "a scan of several colour channels has coefficients {start} to {end}"
        );
        let separate = channels.len() < frame.components.len() && !frame.is_progressive;
        ensure!(
            !separate || frame.has_readable_scans(&channels),
            "its colours are in separate scans and of different sizes, which cannot be read; save it in another way"
        );
        Ok(Band { channels, start, end, is_refinement: frame.is_progressive && bits >> 4 != 0 })
    }
}

/// Parses a frame header.
fn frame(segment: &[u8], is_progressive: bool, max_pixels: u64) -> Result<Frame> {
    let &[precision, h1, h0, w1, w0, n, ref rest @ ..] = segment else {
        bail!("its frame header is cut short")
    };
    ensure!(precision == 8, "it has {precision} bits per channel: wanted 8");
    let size = [[w1, w0], [h1, h0]].map(|pair| usize::from(u16::from_be_bytes(pair)));
    check_size((size[0] as u32, size[1] as u32), max_pixels)?;
    let components = rest.as_chunks::<3>().0.iter().take(usize::from(n));
    let components: Vec<Component> = components
        .map(|&[id, sampling, _]| Component::new(id, usize::from(sampling >> 4), usize::from(sampling & 15)))
        .collect();
    ensure!(
        (1..=4).contains(&n) && components.len() == usize::from(n),
        "it has {n} colour channels: wanted 1, 3 or 4"
    );
    let shape = |component: &Component| [component.across, component.down];
    let first = shape(&components[0]);
    for [across, down] in components.iter().map(shape) {
        ensure!(
            (1..=4).contains(&across) && (1..=4).contains(&down),
            "a channel is sampled {across}x{down}: wanted 1 to 4"
        );
        ensure!(
            first[0].is_multiple_of(across) && first[1].is_multiple_of(down),
            "its colour is sampled {across}x{down}, its brightness {}x{}: wanted colour factors that divide those of brightness",
            first[0],
            first[1]
        );
    }
    Ok(Frame::new(size, components, is_progressive))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY_PIXELS: u64 = 1 << 20;

    /// Reads a file of `fixtures/jpeg`, which Pillow made.
    fn fixture(name: &str) -> Vec<u8> {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/jpeg");
        std::fs::read(dir.join(name)).unwrap()
    }

    const ALL: [&str; 6] = [
        "baseline.jpg",
        "progressive.jpg",
        "restarts.jpg",
        "progressive-restarts.jpg",
        "grey.jpg",
        "cmyk.jpg",
    ];

    fn error_text(bytes: &[u8]) -> Option<String> {
        decode(bytes, MANY_PIXELS).err().map(|error| format!("{error:#}"))
    }

    #[test]
    fn complete_jpegs_of_every_kind_are_decoded() {
        for name in ALL {
            let bytes = fixture(name);
            let (image, _) = decode(&bytes, MANY_PIXELS).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert_eq!((image.width(), image.height()), (53, 43), "{name}");
            // Bytes after the end marker are ignored.
            decode(&[&bytes[..], b"trailing bytes \xff\xd8\xff"].concat(), MANY_PIXELS).unwrap();
        }
    }

    #[test]
    fn truncated_jpeg_is_an_error_at_any_length() {
        for name in ALL {
            let bytes = fixture(name);
            for length in 3..bytes.len() {
                let error = error_text(&bytes[..length]);
                assert!(
                    error.is_some_and(|error| error.starts_with("the picture is damaged")),
                    "{name} cut at {length}"
                );
            }
        }
    }

    #[test]
    fn jpeg_with_zeroed_tail_is_an_error() {
        for name in ALL {
            let mut bytes = fixture(name);
            for length in (3..bytes.len()).rev() {
                bytes[length] = 0;
                assert!(error_text(&bytes).is_some(), "{name} with zeros from {length}");
            }
        }
    }

    /// The presence of the end marker does not prove that a picture is complete.
    #[test]
    fn missing_blocks_before_the_end_marker_are_an_error() {
        for name in ALL {
            let bytes = fixture(name);
            let scan = bytes.windows(2).rposition(|pair| pair == b"\xff\xda").unwrap();
            let first = scan + 2 + usize::from(bytes[scan + 3]);
            // The last bytes contain the last block and padding bits.
            for length in first..bytes.len() - 6 {
                let cut = [&bytes[..length], b"\xff\xd9"].concat();
                assert!(error_text(&cut).is_some(), "{name} cut at {length} and ended");
            }
        }
        let bytes = fixture("baseline.jpg");
        let padded = [&bytes[..bytes.len() - 2], &[0; 300], b"\xff\xd9"].concat();
        assert!(error_text(&padded).unwrap().contains("bytes follow the last block"));
    }

    /// Tables of a single code, in one segment or in many, before a valid picture.
    #[test]
    fn too_many_huffman_tables_are_an_error() {
        let table = [&[0x10, 1][..], &[0; 15], &[7]].concat();
        let segment = |n: usize| {
            let length = (2 + n * table.len()) as u16;
            [b"\xff\xc4", &length.to_be_bytes()[..], &table.repeat(n)].concat()
        };
        let bytes = fixture("baseline.jpg");
        let with = |flood: Vec<u8>| [&bytes[..2], &flood, &bytes[2..]].concat();
        let own = 4;
        for within in [1, MAX_TABLES - own] {
            assert_eq!(error_text(&with(segment(within))), None, "{within} tables");
        }
        for flood in [segment(MAX_TABLES - own + 1), segment(3000), segment(1).repeat(20_000)] {
            assert_eq!(error_text(&with(flood)).unwrap(), "it has more than 800 Huffman tables");
        }
    }

    #[test]
    fn colour_finer_than_brightness_is_an_error() {
        let mut bytes = fixture("baseline.jpg");
        let frame = bytes.windows(2).position(|pair| pair == b"\xff\xc0").unwrap();
        assert_eq!([bytes[frame + 11], bytes[frame + 14]], [0x22, 0x11]);
        (bytes[frame + 11], bytes[frame + 14]) = (0x11, 0x22);
        let error = error_text(&bytes).unwrap();
        assert!(error.contains("its colour is sampled 2x2, its brightness 1x1"), "{error}");
    }

    /// The decoder would read such scans without an error but return wrong pixels.
    #[test]
    fn unreadable_separate_colour_scans_are_an_error() {
        let separated = |name: &str| {
            let bytes = fixture(name);
            let scan = bytes.windows(2).position(|pair| pair == b"\xff\xda").unwrap();
            let brightness_scan = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0";
            error_text(&[&bytes[..scan], brightness_scan, &bytes[scan + 14..]].concat()).unwrap()
        };
        assert!(separated("baseline.jpg").contains("in separate scans"), "{}", separated("baseline.jpg"));
        assert!(!separated("restarts.jpg").contains("in separate scans"), "{}", separated("restarts.jpg"));
    }

    #[test]
    fn first_of_two_orientations_counts() {
        let exif = |orientation: u8| {
            let tiff =
                [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", &[orientation, 0, 0, 0, 0, 0, 0, 0][..]]
                    .concat();
            [b"\xff\xe1\0\x22Exif\0\0", &tiff[..]].concat()
        };
        let bytes = fixture("baseline.jpg");
        let with =
            |blocks: &[u8]| decode(&[&bytes[..2], blocks, &bytes[2..]].concat(), MANY_PIXELS).unwrap().1;
        assert_eq!(with(&exif(6)), Orientation::Rotate90);
        assert_eq!(with(&[exif(6), exif(3)].concat()), Orientation::Rotate90);
    }

    #[test]
    fn changed_bytes_never_make_the_decoder_panic() {
        for name in ALL {
            let original = fixture(name);
            for at in 2..original.len() {
                for byte in [0, 0x11, 0xC4, 0xD0, 0xFF, original[at] ^ 1] {
                    let mut bytes = original.clone();
                    bytes[at] = byte;
                    let _ = decode(&bytes, MANY_PIXELS);
                }
            }
        }
    }
}
