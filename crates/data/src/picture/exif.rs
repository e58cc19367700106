//! Reads the orientation of a picture from its EXIF block.
//!
//! The `image` crate reads only orientations of type SHORT. Some programs write type LONG, so this
//! reader accepts both, as Pillow does.

use image::metadata::Orientation;

/// The EXIF tag of the orientation.
const ORIENTATION: u32 = 0x112;

/// Returns the orientation in an EXIF block, with or without the prefix `Exif\0\0`. The default is
/// upright if the block has no valid orientation.
pub(super) fn orientation(exif: &[u8]) -> Orientation {
    let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    find(tiff).and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
}

/// Returns the value of the orientation in the first directory of a TIFF block.
fn find(tiff: &[u8]) -> Option<u8> {
    let little = match tiff.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let number = |at: usize, bytes: usize| -> Option<u32> {
        let bytes = tiff.get(at..at.checked_add(bytes)?)?.iter();
        let join = |number: u32, byte: &u8| number << 8 | u32::from(*byte);
        Some(if little { bytes.rev().fold(0, join) } else { bytes.fold(0, join) })
    };
    let directory = number(4, 4)? as usize;
    let entries = number(directory, 2)? as usize;
    let entry = (0..entries).map(|entry| directory + 2 + 12 * entry);
    let entry = entry.into_iter().find(|&at| number(at, 2) == Some(ORIENTATION))?;
    let bytes = match number(entry + 2, 2)? {
        1 => 1,
        3 => 2,
        4 => 4,
        _ => return None,
    };
    number(entry + 8, bytes)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a TIFF block with one entry before the orientation.
    fn block(little: bool, kind: u16, value: u32) -> Vec<u8> {
        let short = |n: u16| if little { n.to_le_bytes() } else { n.to_be_bytes() };
        let long = |n: u32| if little { n.to_le_bytes() } else { n.to_be_bytes() };
        let mut bytes = if little { b"II*\0".to_vec() } else { b"MM\0*".to_vec() };
        bytes.extend(long(8));
        bytes.extend(short(2));
        for (tag, kind, value) in [(0x100_u16, 4, long(7)), (0x112, kind, long(value))] {
            bytes.extend([short(tag), short(kind)].concat());
            bytes.extend(long(1));
            match kind {
                3 => bytes.extend([short(value_of(value, little) as u16), [0; 2]].concat()),
                _ => bytes.extend(value),
            }
        }
        bytes
    }

    fn value_of(bytes: [u8; 4], little: bool) -> u32 {
        if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) }
    }

    #[test]
    fn orientation_is_read_in_both_byte_orders_and_types() {
        for little in [true, false] {
            for kind in [3, 4] {
                assert_eq!(orientation(&block(little, kind, 6)), Orientation::Rotate90, "{little} {kind}");
            }
            let prefixed = [b"Exif\0\0".to_vec(), block(little, 3, 8)].concat();
            assert_eq!(orientation(&prefixed), Orientation::Rotate270);
        }
    }

    #[test]
    fn invalid_blocks_give_no_transform() {
        for bytes in [block(true, 3, 0), block(true, 3, 9), block(false, 4, 70_000), block(true, 2, 6)] {
            assert_eq!(orientation(&bytes), Orientation::NoTransforms);
        }
        let bytes = block(true, 3, 6);
        for length in 0..bytes.len() - 2 {
            assert_eq!(orientation(&bytes[..length]), Orientation::NoTransforms, "{length}");
        }
        assert_eq!(orientation(b"II*\0\xff\xff\xff\xff"), Orientation::NoTransforms);
    }
}
