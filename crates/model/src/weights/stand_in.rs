//! Recognises files that are often downloaded by mistake in place of weights.

use anyhow::{Result, bail};
use serde_json::Value;

/// The beginning of a Git LFS pointer.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Returns an error with the kind of file if `bytes` are a Git LFS pointer, an index of several
/// weight files, other JSON, or a web page.
///
/// # Errors
/// If `bytes` are one of these.
pub(super) fn refuse_stand_in(bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(LFS) {
        bail!("it is a pointer of Git LFS, not the weights: `git lfs pull` fetches them");
    }
    let text = bytes.trim_ascii_start();
    // "<" alone is not enough: it may also be the first byte of a safetensors file, whose header
    // length comes first.
    if [&b"<!"[..], b"<?", b"<h", b"<H"].iter().any(|start| text.starts_with(start)) {
        bail!("it is a web page, not weights: download the file itself");
    }
    if text.starts_with(b"{")
        && let Ok(json) = serde_json::from_slice::<Value>(text)
    {
        match json.get("weight_map").and_then(Value::as_object) {
            Some(map) => {
                let mut files: Vec<&str> = map.values().filter_map(Value::as_str).collect();
                files.sort_unstable();
                files.dedup();
                bail!(
                    "it is an index of weights that lie in {} files ({} …), not weights: join them into one file first",
                    files.len(),
                    files.first().unwrap_or(&"none")
                );
            }
            None => bail!("it is JSON, not weights"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{ModelFile, read_openai_dvae, read_torch_file};

    #[test]
    fn stand_ins_are_recognised_by_every_reader_of_weights() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4f2a\nsize 605157884\n";
        let index = r#"{"metadata": {"total_size": 8}, "weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-1.safetensors"}}"#;
        for (bytes, wanted) in [
            (pointer, "a pointer of Git LFS, not the weights"),
            (index, "an index of weights that lie in 2 files (model-1.safetensors …)"),
            ("\n<!DOCTYPE html><html>", "a web page, not weights"),
            (r#"{"model_type": "clip"}"#, "it is JSON, not weights"),
        ] {
            let bytes = bytes.as_bytes();
            let errors = [
                ModelFile::from_bytes(bytes).map(drop),
                read_torch_file(bytes, |_| true).map(drop),
                read_openai_dvae(bytes, bytes).map(drop),
                super::super::read_clip(bytes, "{}".into(), &Default::default()).map(drop),
            ];
            for error in errors {
                let error = format!("{:#}", error.unwrap_err());
                assert!(error.contains(wanted), "{error}");
            }
        }
    }
}
