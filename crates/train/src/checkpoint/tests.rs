//! Tests of checkpoints: round trips, damage, shards, and older formats.

use std::collections::HashMap;

use tessera_model::nn::{Init, Linear, export};

use super::*;
use crate::optim::Moments;
use crate::precision::{Rules, Scaling};

pub(crate) const TEXT: &str =
    "# tessera train dvae, seed 0, data 12ab\n\n[train_dvae]\nlr = 0.5\nsteps = 9\n";

fn flat(values: [f32; 2]) -> Tensor<1> {
    Tensor::from_data(TensorData::from(values), &Device::flex())
}

pub(crate) fn state(step: u64) -> TrainState {
    let param = Param {
        name: "w.x".into(),
        cut: Cut::whole(&[2]),
        role: Role::Matrix,
        id: ParamId::new(),
        value: flat([1.0, 1.0 / 3.0]),
        average: flat([2.0, 1.0 / 3.0]),
        mean: Moment::Small(SmallFloat::OneSixNine, vec![1, 2]),
        variance: Moment::Full(Box::new(flat([0.3, 0.4]))),
    };
    let mut plateau = Plateau::default();
    (0..7).for_each(|i| plateau.update(2.0 + 1e-9 * f64::from(i), 2, 0.1));
    let mut scales = Scales::new(Rules::paper(Scaling::Resblock), 3, SmallFloat::F16, 1);
    (0..1000).for_each(|step| drop(scales.update(step, &[1][..usize::from(step % 300 == 7)], true)));
    TrainState {
        step,
        params: ParamStore { params: vec![param], updates: step / 2 },
        plateau,
        scales: Some(scales),
        compressors: Compressors::default(),
        unapplied: Vec::new(),
        good: Some(GoodCheckpoint { step: step / 3, lowest: 0.1 }),
        best: Some(Best { step: step / 2, loss: 0.3, since: 2 }),
        average_is_current: step % 2 == 1,
        losses: Default::default(),
    }
}

fn to_bytes(state: &TrainState, text: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    write(state, &state.unapplied, text, folder.path(), [0, 1]).unwrap();
    fs::read(folder.path().join(STATE_FILE)).unwrap()
}

fn of_bytes(bytes: &[u8]) -> Result<Checkpoint> {
    Checkpoint::of_bytes(bytes).map(|(checkpoint, _)| checkpoint)
}

fn error(bytes: &[u8]) -> String {
    format!("{:#}", of_bytes(bytes).err().unwrap())
}

#[test]
fn checkpoint_round_trips_with_the_text_of_its_run() {
    let unapplied = vec![HostTensor { name: "w.x".into(), shape: vec![2], values: vec![0.5, -1.0] }];
    for state in [state(5), TrainState { unapplied, ..state(5) }] {
        let bytes = to_bytes(&state, TEXT);
        let read = of_bytes(&bytes).unwrap();
        assert_eq!((&read.state, read.text.as_deref()), (&state, Some(TEXT)));
        assert_eq!(bytes, to_bytes(&state, TEXT));
    }
}

/// Shards of the rows or columns of a parameter are put together again.
#[test]
fn shards_of_several_ranks_are_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let unapplied = HostTensor { name: "w.x".into(), shape: vec![2], values: vec![0.5, -1.0] };
    for rank in [0, 1] {
        let mut state = state(5);
        let divided = |param: Param| Param { role: Role::Vector, ..param }.divided([rank, 2]).unwrap();
        state.params.params = state.params.params.into_iter().map(divided).collect();
        let values = vec![unapplied.values[rank]];
        let unapplied = [HostTensor { shape: vec![1], values, ..unapplied.clone() }];
        write(&state, &unapplied, TEXT, folder.path(), [rank, 2]).unwrap();
    }
    let read = Checkpoint::read(folder.path()).unwrap();
    assert_eq!(read.state, TrainState { unapplied: vec![unapplied], ..state(5) });
    let second = Checkpoint::read(&folder.path().join(shard_file(1))).err().unwrap();
    assert!(format!("{second:#}").contains("has only shard 1 of 2"), "{second:#}");
    write(&state(6), &[], TEXT, folder.path(), [1, 2]).unwrap();
    let other = Checkpoint::read(folder.path()).err().unwrap();
    assert!(format!("{other:#}").contains("state.1.safetensors is not shard 1"), "{other:#}");
    fs::remove_file(folder.path().join(shard_file(1))).unwrap();
    let missing = Checkpoint::read(folder.path()).err().unwrap();
    assert!(format!("{missing:#}").contains("shard 1 of 2, "), "{missing:#}");
}

#[test]
fn every_flipped_bit_is_detected() {
    let bytes = to_bytes(&state(5), TEXT);
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(of_bytes(&damaged).is_err(), "bit {bit}");
    }
}

/// Returns a checkpoint as format version 2 wrote it: with one metadata entry per field.
fn of_format(format: &str) -> Vec<u8> {
    let state = state(5);
    let bytes = to_bytes(&state, TEXT);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let meta = [
        ("format", format.to_string()),
        ("step", state.step.to_string()),
        ("updates", state.params.updates.to_string()),
        ("plateau", serde_json::to_string(&state.plateau).unwrap()),
        ("scales", serde_json::to_string(&state.scales).unwrap()),
    ];
    let meta = HashMap::from_iter(meta.map(|(key, value)| (key.to_string(), value)));
    safetensors::serialize(tensors.tensors(), Some(meta)).unwrap()
}

#[test]
fn checkpoint_without_a_checksum_is_read() {
    let read = of_bytes(&of_format("2")).unwrap();
    assert_eq!(
        (read.state, read.text),
        (TrainState { good: None, best: None, average_is_current: false, ..state(5) }, None)
    );
    assert!(error(&of_format("1")).contains("format version 1; this program reads 2 to 3"));
}

#[test]
fn newer_format_and_mismatched_parts_are_refused() {
    let newer =
        Kind { format: 4, ..KIND }.write(&HashMap::from([("step", 1)]), Vec::<(_, TensorView)>::new());
    assert!(error(&newer.unwrap()).contains("format version 4, written by a newer version"));
    let mut other = state(5);
    other.params.params[0].mean = Moment::Full(Box::new(flat([0.1, 0.2]).narrow(0, 0, 1)));
    let tensors = tensors(&other.params, 0).into_iter().map(|(name, stored)| {
        let shape = vec![stored.data_len() / if stored.dtype() == Dtype::F32 { 4 } else { 2 }];
        (name, (shape, stored.dtype(), stored.data().into_owned()))
    });
    let tensors: Vec<_> = tensors.collect();
    let views = tensors.iter().map(|(name, (shape, dtype, bytes))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let header: Header = serde_json::from_value(serde_json::json!({
        "step": 1, "updates": 1, "plateau": other.plateau, "scales": null, "good": null, "text": TEXT
    }))
    .unwrap();
    assert!(error(&KIND.write(&header, views.collect()).unwrap()).contains("do not fit each other"));
}

/// In a run whose decay is 0, the average lags one update behind the weights.
#[test]
fn weights_of_a_run_without_an_average_are_used() {
    let model = Linear::new(&mut Init::new(1, &Device::flex()), [1, 1], 0.1);
    let mut params = ParamStore::new(&model, Moments::Full);
    for param in &mut params.params {
        (param.value, param.average) = (param.value.ones_like(), param.value.ones_like() * 2.0);
    }
    let state = TrainState { params, ..state(5) };
    let first = |text: Option<String>| {
        let checkpoint = Checkpoint { state: state.clone(), text };
        let model = checkpoint.averaged(model.clone(), Stage::Dvae, &[], &[]).unwrap();
        export(&model)[0].values[0]
    };
    assert_eq!(first(Some(TEXT.to_string())), 2.0);
    assert_eq!(first(Some(format!("{TEXT}ema = 0.9\n"))), 2.0);
    assert_eq!(first(Some(format!("{TEXT}ema = 0.0\n"))), 1.0);
    assert_eq!(first(None), 2.0);
}

#[test]
fn checkpoints_are_distinguished_from_other_files() {
    assert!(Checkpoint::is_one(&to_bytes(&state(5), TEXT)) && Checkpoint::is_one(&of_format("2")));
    let model = tessera_model::weights::ModelFile::default().to_bytes().unwrap();
    assert!(!Checkpoint::is_one(&model) && !Checkpoint::is_one(b"text"));
}
