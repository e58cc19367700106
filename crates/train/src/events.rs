//! TensorBoard's event files: TFRecords of two small protobuf messages, written by hand because that is all there is to
//! them (`Event { wall_time = 1, step = 2, file_version = 3, summary = 5 { value = 1 { tag = 1, simple_value = 2 } } }`).

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// An open event file.
pub struct EventWriter {
    file: BufWriter<File>,
}

impl EventWriter {
    /// A new file in `dir`, for a run that starts at `step`.
    pub fn create(dir: &Path, step: u64) -> Result<EventWriter> {
        let path = dir.join(format!("events.out.tfevents.{:010}.step{step:06}", now_secs() as u64));
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut writer = EventWriter { file: BufWriter::new(file) };
        let mut event = double(1, now_secs());
        event.extend(bytes(3, b"brain.Event:2"));
        writer.record(&event)?;
        Ok(writer)
    }

    /// One event with a value for each figure, tagged `split/name`.
    pub fn scalars(&mut self, split: &str, step: u64, figures: &[(&'static str, f64)]) -> Result<()> {
        let value = |(name, figure): &(&str, f64)| {
            let mut value = bytes(1, format!("{split}/{name}").as_bytes());
            value.extend(float(2, *figure as f32));
            bytes(1, &value)
        };
        let summary: Vec<u8> = figures.iter().flat_map(value).collect();
        let mut event = double(1, now_secs());
        event.extend(tag(2, 0));
        event.extend(varint(step));
        event.extend(bytes(5, &summary));
        self.record(&event)?;
        Ok(self.file.flush()?)
    }

    /// A TFRecord: length, its checksum, the payload, its checksum.
    fn record(&mut self, payload: &[u8]) -> Result<()> {
        let length = (payload.len() as u64).to_le_bytes();
        self.file.write_all(&length)?;
        self.file.write_all(&masked_crc(&length).to_le_bytes())?;
        self.file.write_all(payload)?;
        Ok(self.file.write_all(&masked_crc(payload).to_le_bytes())?)
    }
}

fn now_secs() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn tag(field: u64, wire_type: u64) -> Vec<u8> {
    varint(field << 3 | wire_type)
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn double(field: u64, value: f64) -> Vec<u8> {
    [tag(field, 1), value.to_le_bytes().to_vec()].concat()
}

fn float(field: u64, value: f32) -> Vec<u8> {
    [tag(field, 5), value.to_le_bytes().to_vec()].concat()
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [tag(field, 2), varint(value.len() as u64), value.to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `masked_crc32c` of TensorFlow's own length field for a 24-byte record, from its record writer's tests:
    /// crc32c("123456789") is the published check value 0xe3069283.
    #[test]
    fn checksum_is_castagnoli_rotated_and_masked() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn protobuf_primitives() {
        assert_eq!(varint(300), [0xac, 0x02]);
        assert_eq!(bytes(5, b"ab"), [0x2a, 2, b'a', b'b']);
        assert_eq!(float(2, 1.0), [0x15, 0, 0, 0x80, 0x3f]);
    }
}
