//! Writes TensorBoard's event files: TFRecords of protobuf messages.
//!
//! The messages are so simple that this file encodes them itself (numbers are field numbers):
//! `Event { wall_time = 1, step = 2, file_version = 3, summary = 5 { value = 1 { tag = 1,
//! simple_value = 2, image = 4 { height = 1, width = 2, colorspace = 3, encoded_image_string = 4 },
//! tensor = 8 { dtype = 1, tensor_shape = 2 { dim = 2 } }, metadata = 9 { plugin_data = 1 {
//! plugin_name = 1, content = 2 } } } } }`. The content of the plugin `hparams` is
//! `HParamsPluginData { session_start_info = 3 { hparams = 1 (a map of `Value`s, as text in
//! string_value = 3 or a number in number_value = 2), start_time_secs = 5 } }`.

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

    /// Writes one event with a picture, which is given as a PNG and its width and height.
    pub fn picture(&mut self, step: u64, size: (u32, u32), png: &[u8]) -> Result<()> {
        self.file.write_all(&record(&picture(now_secs(), step, size, png)))?;
        Ok(self.file.flush()?)
    }

    /// Writes the settings of the run, which TensorBoard shows as hyperparameters.
    pub fn settings(&mut self, settings: &[(String, Setting)]) -> Result<()> {
        self.file.write_all(&record(&hparams(now_secs(), settings)))?;
        Ok(self.file.flush()?)
    }
}

/// The value of a setting.
#[derive(Debug, Clone, PartialEq)]
pub enum Setting {
    /// A number.
    Number(f64),
    /// Any other value, as text.
    Text(String),
}

/// The tag and the plugin of the settings of a run.
const HPARAMS: [&str; 2] = ["_hparams_/session_start_info", "hparams"];
/// `colorspace` of RGB, and `dtype` of f32.
const RGB: u64 = 3;
const DT_FLOAT: u64 = 1;

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

fn picture(wall_time: f64, step: u64, (width, height): (u32, u32), png: &[u8]) -> Vec<u8> {
    let sizes = [integer(1, height.into()), integer(2, width.into()), integer(3, RGB)].concat();
    let image = [sizes, bytes(4, png)].concat();
    let value = [bytes(1, b"samples"), bytes(4, &image)].concat();
    [double(1, wall_time), integer(2, step), bytes(5, &bytes(1, &value))].concat()
}

fn hparams(wall_time: f64, settings: &[(String, Setting)]) -> Vec<u8> {
    let entry = |(name, setting): &(String, Setting)| {
        let value = match setting {
            Setting::Number(number) => double(2, *number),
            Setting::Text(text) => bytes(3, text.as_bytes()),
        };
        bytes(1, &[bytes(1, name.as_bytes()), bytes(2, &value)].concat())
    };
    let entries: Vec<u8> = settings.iter().flat_map(entry).collect();
    let content = bytes(3, &[entries, double(5, wall_time)].concat());
    let plugin = [bytes(1, HPARAMS[1].as_bytes()), bytes(2, &content)].concat();
    // The value has no number: only its metadata matters.
    let empty = [integer(1, DT_FLOAT), bytes(2, &bytes(2, &[]))].concat();
    let value = [bytes(1, HPARAMS[0].as_bytes()), bytes(8, &empty), bytes(9, &bytes(1, &plugin))].concat();
    [double(1, wall_time), bytes(5, &bytes(1, &value))].concat()
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

fn integer(field: u64, value: u64) -> Vec<u8> {
    [tag(field, 0), varint(value)].concat()
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
    /// # Records are written by RecordWriter(file).write(event.SerializeToString()).
    /// from tensorboard.summary.writer.record_writer import RecordWriter
    /// Event(wall_time=1.5, file_version="brain.Event:2")
    /// Event(wall_time=1.5, step=300, summary=Summary(value=[
    ///     Summary.Value(tag="train/loss", simple_value=0.25),
    ///     Summary.Value(tag="train/lr", simple_value=0.001)]))
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

    /// ```python
    /// Event(wall_time=1.5, step=300, summary=Summary(value=[Summary.Value(
    ///     tag="samples", image=Summary.Image(
    ///         height=2, width=3, colorspace=3, encoded_image_string=b"png"))]))
    /// # From tensorboard.plugins.hparams:
    /// info = plugin_data_pb2.SessionStartInfo(start_time_secs=1.5)
    /// info.hparams["prior.n_layers"].number_value = 6
    /// info.hparams["train.schedule"].string_value = "cosine"
    /// Event(wall_time=1.5, summary=Summary(value=[Summary.Value(
    ///     tag=metadata.SESSION_START_INFO_TAG, tensor=metadata.NULL_TENSOR,
    ///     metadata=metadata.create_summary_metadata(
    ///         plugin_data_pb2.HParamsPluginData(session_start_info=info)))]))
    /// ```
    #[test]
    fn pictures_and_settings_equal_the_bytes_that_tensorboard_writes() {
        assert_eq!(
            hex(&record(&picture(1.5, 300, (3, 2), b"png"))),
            "2600000000000000734fe30009000000000000f83f10ac022a180a160a0773616d706c6573220b0802100318032203706e676c24f450"
        );
        let settings = [
            ("prior.n_layers".to_string(), Setting::Number(6.0)),
            ("train.schedule".to_string(), Setting::Text("cosine".to_string())),
        ];
        assert_eq!(
            hex(&record(&hparams(1.5, &settings))),
            "860000000000000070011d5c09000000000000f83f2a7b0a790a1c5f68706172616d735f2f73657373696f6e5f73746172745f696e666f42060801120212004a510a4f0a0768706172616d7312441a420a1b0a0e7072696f722e6e5f6c617965727312091100000000000018400a1a0a0e747261696e2e7363686564756c6512081a06636f73696e6529000000000000f83f7eb5477b"
        );
    }

    #[test]
    fn protobuf_primitives_are_encoded() {
        assert_eq!(varint(300), [0xac, 0x02]);
        assert_eq!(bytes(5, b"ab"), [0x2a, 2, b'a', b'b']);
        assert_eq!(float(2, 1.0), [0x15, 0, 0, 0x80, 0x3f]);
    }
}
