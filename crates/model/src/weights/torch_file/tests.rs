//! Tests of reading PyTorch files.

use super::*;

/// A file from before PyTorch 1.6 with the pickle `object` and one storage, whose key is `0`,
/// of `numbers`.
fn file(object: &[u8], numbers: &[f32]) -> Vec<u8> {
    let empty: &[u8] = b"\x80\x02}.";
    let keys: &[u8] = b"\x80\x02]X\x01\x00\x00\x000a.";
    let count = (numbers.len() as u64).to_le_bytes();
    let content: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    [OLD, empty, empty, object, keys, &count, &content].concat()
}

/// A dictionary with the same tensor under all `names`. The tensor has one dimension; its
/// offset, size and stride are encoded in one byte each.
fn tensors(names: &[&str], [offset, size, stride]: [u8; 3]) -> Vec<u8> {
    let mut object =
        b"\x80\x02}ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n\
        X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04NtQ"
            .to_vec();
    object.extend([b'K', offset, b'K', size, 0x85, b'K', stride, 0x85, b't', b'R', b'q', 1, b'0']);
    for name in names {
        object.extend([b'X', name.len() as u8, 0, 0, 0]);
        object.extend(name.bytes());
        object.extend([b'h', 1, b's']);
    }
    object.push(b'.');
    object
}

fn error(object: &[u8]) -> String {
    format!("{:#}", read(&file(object, &[1.0, 2.0, 3.0, 4.0]), |_| true).unwrap_err())
}

#[test]
fn tensor_is_read_with_its_offset_size_and_stride() {
    let read = |layout| read(&file(&tensors(&["w"], layout), &[1.0, 2.0, 3.0, 4.0]), |_| true).unwrap();
    assert_eq!((&*read([0, 4, 1])[0].name, &read([0, 4, 1])[0].values[..]), ("w", &[1.0, 2.0, 3.0, 4.0][..]));
    assert_eq!(read([1, 2, 2])[0].values, [2.0, 4.0]);
    assert_eq!(read([2, 3, 0])[0].values, [3.0, 3.0, 3.0]);
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../../fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// `fixtures/eval/inception.py` saved a convolution and its batch norm in both containers. The
/// batch counter of a batch norm is an integer without dimensions.
#[test]
fn integer_tensor_is_an_error_only_if_it_is_needed() {
    let files = ["eval/batch_norm.pth", "eval/batch_norm_old.pth"].map(fixture);
    for file in &files {
        let error = format!("{:#}", read(file, |_| true).unwrap_err());
        assert!(error.contains("bn.num_batches_tracked is stored in a torch LongStorage"), "{error}");
    }
    let [new, old] = files.map(|file| read(&file, |name| name != "bn.num_batches_tracked").unwrap());
    assert_eq!(new, old);
    let shapes: Vec<(&str, &[usize])> = new.iter().map(|t| (&*t.name, &t.shape[..])).collect();
    let wanted: [(&str, &[usize]); 5] = [
        ("conv.weight", &[2, 3, 1, 1]),
        ("bn.weight", &[2]),
        ("bn.bias", &[2]),
        ("bn.running_mean", &[2]),
        ("bn.running_var", &[2]),
    ];
    assert_eq!(shapes, wanted);
    assert!(new[4].values.iter().all(|variance| (0.5..1.5).contains(variance)), "{:?}", new[4].values);
}

/// `fixtures/clip/odd_types.py` made the checkpoints: weights, tensors of every other dtype,
/// and an optimizer state whose keys are numbers.
#[test]
fn tensors_that_are_not_needed_may_have_any_dtype() {
    for name in ["clip/odd-types.pt", "clip/odd-types-old.pt"] {
        let file = TorchFile::open(&fixture(name)).unwrap();
        assert!(file.names().any(|name| name == "flags.bool"), "{name}");
        let read = file.read(|name, _| name.starts_with("state_dict.")).unwrap();
        let read: Vec<_> = read.iter().map(|tensor| (&*tensor.name, &tensor.values[..])).collect();
        let wanted: [(&str, &[f32]); 2] =
            [("state_dict.w", &[1.0, 2.0, 3.0]), ("state_dict.double", &[0.5, -0.25])];
        assert_eq!(read, wanted, "{name}");
    }
}

#[test]
fn tensors_beyond_their_storage_or_the_file_are_errors() {
    assert!(error(&tensors(&["w"], [0, 5, 1])).contains("w: a shape of [5] in a storage of 16 bytes"));
    assert!(error(&tensors(&["w"], [3, 2, 1])).contains("in a storage of 16 bytes"));
    assert!(error(&tensors(&["w"], [0, 2, 200])).contains("in a storage of 16 bytes"));
    let names: Vec<String> = (0..100).map(|i| i.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert!(error(&tensors(&names, [0, 255, 0])).contains("many times larger than the file"));
}

#[test]
fn object_that_contains_itself_is_an_error() {
    // d = {}; d[""] = d
    assert!(error(b"\x80\x02}q\x00X\x00\x00\x00\x00h\x00s.").contains("nested more deeply"));
    // args = []; p = _rebuild_parameter(args); args.append(p)
    let parameter = b"\x80\x02ctorch._utils\n_rebuild_parameter\n]q\x00Rq\x01h\x00h\x01a0.";
    assert!(error(parameter).contains("nested more deeply"));
}
