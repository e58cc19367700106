//! Writes TensorBoard's event files: TFRecords of protobuf messages.
//!
//! The messages are so simple that this file encodes them itself (numbers are field numbers):
//! `Event { wall_time = 1, step = 2, file_version = 3, summary = 5 { value = 1 { tag = 1,
//! simple_value = 2 } } }`.

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
    /// Creates a new file in `dir`, for a run that starts at `step`.
    pub fn create(dir: &Path, step: u64) -> Result<EventWriter> {
        let path = dir.join(format!("events.out.tfevents.{:010}.step{step:06}", now_secs() as u64));
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut writer = EventWriter { file: BufWriter::new(file) };
        writer.file.write_all(&record(&version(now_secs())))?;
        Ok(writer)
    }

    /// Writes one event with the value of each metric, tagged `split/name`.
    pub fn scalars(&mut self, split: &str, step: u64, figures: &[(&'static str, f64)]) -> Result<()> {
        self.file.write_all(&record(&values(now_secs(), split, step, figures)))?;
        Ok(self.file.flush()?)
    }
}

/// Returns the first event of a file, with the version of the format.
fn version(wall_time: f64) -> Vec<u8> {
    [double(1, wall_time), bytes(3, b"brain.Event:2")].concat()
}

fn values(wall_time: f64, split: &str, step: u64, figures: &[(&'static str, f64)]) -> Vec<u8> {
    let value = |(name, figure): &(&str, f64)| {
        let mut value = bytes(1, format!("{split}/{name}").as_bytes());
        value.extend(float(2, *figure as f32));
        bytes(1, &value)
    };
    let summary: Vec<u8> = figures.iter().flat_map(value).collect();
    [double(1, wall_time), tag(2, 0), varint(step), bytes(5, &summary)].concat()
}

/// Returns a TFRecord: the length, its checksum, the payload, and its checksum.
fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let (head, tail) = (masked_crc(&length).to_le_bytes(), masked_crc(payload).to_le_bytes());
    [&length[..], &head, payload, &tail].concat()
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

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// ```python
    /// from tensorboard.compat.proto.event_pb2 import Event                 # tensorboard 2.21
    /// from tensorboard.compat.proto.summary_pb2 import Summary
    /// from tensorboard.summary.writer.record_writer import RecordWriter   # RecordWriter(file).write(event.SerializeToString())
    /// Event(wall_time=1.5, file_version="brain.Event:2")
    /// Event(wall_time=1.5, step=300, summary=Summary(value=[
    ///     Summary.Value(tag="train/loss", simple_value=0.25), Summary.Value(tag="train/lr", simple_value=0.001)]))
    /// ```
    #[test]
    fn records_equal_the_bytes_that_tensorboard_writes() {
        assert_eq!(
            hex(&record(&version(1.5))),
            "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c"
        );
        assert_eq!(
            hex(&record(&values(1.5, "train", 300, &[("loss", 0.25), ("lr", 0.001)]))),
            "3200000000000000241956ec09000000000000f83f10ac022a240a110a0a747261696e2f6c6f7373150000803e\
             0a0f0a08747261696e2f6c72156f12833adf45ab1f"
        );
    }

    #[test]
    fn protobuf_primitives_are_encoded() {
        assert_eq!(varint(300), [0xac, 0x02]);
        assert_eq!(bytes(5, b"ab"), [0x2a, 2, b'a', b'b']);
        assert_eq!(float(2, 1.0), [0x15, 0, 0, 0x80, 0x3f]);
    }
}
