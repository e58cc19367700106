//! Text from outside: bytes of a file, an archive or a request as characters, by one rule for all of them.

use anyhow::{Result, ensure};

use crate::normalise;

/// The text in `bytes`: UTF-8 with or without a byte order mark, or UTF-16 with one. The mark is
/// removed, and so are NULs at the end, which some programs pad with.
///
/// # Errors
/// If it is neither, or binary. Other encodings are not guessed.
pub fn decode_text(bytes: &[u8]) -> Result<String> {
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes)?,
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes)?,
        [0xef, 0xbb, 0xbf, rest @ ..] => utf8(rest)?,
        bytes => utf8(bytes)?,
    };
    let text = text.trim_end_matches('\0');
    let nul = text.find('\0');
    ensure!(nul.is_none(), "not text: it holds NULs, as binary files and UTF-16 without a mark do; {WANTED}");
    Ok(text.to_string())
}

const WANTED: &str = "save it as UTF-8";

fn utf8(bytes: &[u8]) -> Result<String> {
    match str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_string()),
        Err(error) => {
            let at = error.valid_up_to();
            let byte = bytes.get(at).copied().unwrap_or_default();
            anyhow::bail!("not UTF-8: byte 0x{byte:02x} at position {at}; {WANTED}")
        }
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let text = char::decode_utf16(pairs.iter().map(|pair| unit(*pair))).collect::<Result<String, _>>();
    match text {
        Ok(text) if rest.is_empty() => Ok(text),
        _ => anyhow::bail!("not UTF-8, and damaged as UTF-16, which its first two bytes claim; {WANTED}"),
    }
}

/// The lines of a text that hold something to read, trimmed: captions, prompts, names of classes.
pub fn text_lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !normalise(line).is_empty()).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `text` as UTF-16 with its mark.
    fn utf16_of(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        [0xfeff].into_iter().chain(text.encode_utf16()).flat_map(bytes).collect()
    }

    #[test]
    fn utf8_and_marked_utf16_give_the_same_text() {
        let text = "Köln, 苹果 🍎\n";
        let marked = [&[0xef, 0xbb, 0xbf], text.as_bytes()].concat();
        for bytes in [
            text.as_bytes().to_vec(),
            marked,
            utf16_of(text, u16::to_le_bytes),
            utf16_of(text, u16::to_be_bytes),
            [text.as_bytes(), &[0, 0]].concat(),
        ] {
            assert_eq!(decode_text(&bytes).unwrap(), text, "{bytes:?}");
        }
        for bytes in [&b""[..], b"\xef\xbb\xbf", b"\xff\xfe", b"\0\0\0"] {
            assert_eq!(decode_text(bytes).unwrap(), "", "{bytes:?}");
        }
    }

    #[test]
    fn other_encodings_and_binaries_are_refused() {
        for (bytes, wanted) in [
            (&b"a cat\x92s ear"[..], "byte 0x92 at position 5"), // Windows-1252
            (b"\xc6\xbb\xb9\xfb", "not UTF-8"),                  // GB18030
            (b"\x89PNG\r\n\x1a\n\0\0", "byte 0x89 at position 0"),
            (b"a\0 \0r\0e\0d\0", "holds NULs"),
            (b"\0a\0 \0r\0e\0d", "holds NULs"),
            (b"\xff\xfe\0\0a\0\0\0", "holds NULs"), // UTF-32
            (b"\xff\xfea\0b", "damaged as UTF-16"),
            (b"\xff\xfe\x00\xd8", "damaged as UTF-16"),
        ] {
            let error = decode_text(bytes).unwrap_err().to_string();
            assert!(error.contains(wanted) && error.contains("save it as UTF-8"), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn lines_without_anything_to_read_are_left_out() {
        assert_eq!(text_lines(" a fox \r\n\n\u{200b}\n\u{feff}\t\na cat"), ["a fox", "a cat"]);
    }
}
