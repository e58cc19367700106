//! Decodes bytes from files, archives and requests to text, with the same rules for all of them.

use anyhow::{Result, ensure};

use crate::normalise;

/// Decodes UTF-8 with or without a byte order mark, or UTF-16 with one. The mark is removed, and so
/// are NULs at the end, which some programs write as padding.
///
/// # Errors
/// If the bytes are in another encoding or are binary data. Other encodings are not guessed.
pub fn decode_text(bytes: &[u8]) -> Result<String> {
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes)?,
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes)?,
        [0xef, 0xbb, 0xbf, rest @ ..] => utf8(rest)?,
        bytes => utf8(bytes)?,
    };
    let text = text.trim_end_matches('\0');
    let nul = text.find('\0');
    ensure!(
        nul.is_none(),
        "not text: it holds NULs, as binary files and UTF-16 without a byte order mark do; {ADVICE}"
    );
    Ok(text.to_string())
}

const ADVICE: &str = "save it as UTF-8";

fn utf8(bytes: &[u8]) -> Result<String> {
    match str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_string()),
        Err(error) => {
            let at = error.valid_up_to();
            let byte = bytes.get(at).copied().unwrap_or_default();
            anyhow::bail!("not UTF-8: byte 0x{byte:02x} at position {at}; {ADVICE}")
        }
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let text = char::decode_utf16(pairs.iter().map(|pair| unit(*pair))).collect::<Result<String, _>>();
    match text {
        Ok(text) if rest.is_empty() => Ok(text),
        _ => anyhow::bail!("not UTF-8, and damaged as UTF-16, which its first two bytes claim; {ADVICE}"),
    }
}

/// Returns the non-empty lines of a text, trimmed. A line is empty if nothing remains after
/// [`normalise`]. Used for captions, prompts and class names.
pub fn text_lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !normalise(line).is_empty()).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes `text` as UTF-16 with a byte order mark.
    fn utf16_of(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        [0xfeff].into_iter().chain(text.encode_utf16()).flat_map(bytes).collect()
    }

    #[test]
    fn utf8_and_utf16_with_mark_give_the_same_text() {
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
    fn other_encodings_and_binary_data_are_errors() {
        for (bytes, expected) in [
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
            assert!(error.contains(expected) && error.contains("save it as UTF-8"), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn lines_without_visible_text_are_left_out() {
        assert_eq!(text_lines(" a fox \r\n\n\u{200b}\n\u{feff}\t\na cat"), ["a fox", "a cat"]);
    }
}
