//! Compares the network with pytorch-fid's, torch-fidelity's and torchvision's. The weights come
//! from a formula that both sides compute (`fixtures/eval/inception.py`).

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use image::{GenericImageView, RgbImage};
use safetensors::SafeTensors;

use super::*;
use crate::{DmGan, Gaussian, InceptionScore, Protocol, Store, frechet_distance};

const CONVENTIONS: [(&str, Kind, Resize); 3] = [
    ("pytorch_fid", Kind::Tf2015, Resize::PytorchFid),
    ("torch_fidelity", Kind::Tf2015, Resize::TorchFidelity),
    ("torchvision", Kind::Torchvision, Resize::PytorchFid),
];

/// The fixture contains every `STEP`-th value of a prepared picture.
const STEP: usize = 499;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/eval").join(name)
}

fn golden(name: &str) -> Vec<f64> {
    static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| fs::read(fixture("inception.safetensors")).unwrap());
    let file = SafeTensors::deserialize(&FILE).unwrap();
    let words = file.tensor(name).unwrap().data().as_chunks::<4>().0;
    words.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
}

/// `count` numbers from -1 to 1 that depend only on `name`: splitmix64, seeded with its FNV-1a
/// hash.
fn noise(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    let start = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, hash);
    (1..=count as u64).map(move |i| {
        let x = start.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ x >> 31) >> 40) as f64 / f64::from(1 << 23) - 1.0
    })
}

/// The weight `name`. Filters keep the magnitude of activations after ReLU; means are near 0 and
/// variances near 1.
fn formula(name: &str, shape: &[usize]) -> HostTensor {
    let parts: Vec<&str> = name.rsplit('.').collect();
    let [base, scale] = match parts[..] {
        ["running_var", ..] => [1.0, 0.5],
        ["weight", "bn", ..] => [1.0, 0.3],
        ["bias" | "running_mean", ..] => [0.0, 0.2],
        _ => [0.0, (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt()],
    };
    let values = noise(name, shape.iter().product()).map(|noise| (base + scale * noise) as f32).collect();
    HostTensor { name: name.to_string(), shape: shape.to_vec(), values }
}

/// All weights of `kind`, and the additional tensors that real files contain.
fn weights(kind: Kind) -> Vec<HostTensor> {
    let mut weights = Vec::new();
    let list = &mut |spec: graph::Spec, n_in| {
        let [height, width] = spec.kernel;
        weights.push(formula(&format!("{}.conv.weight", spec.name), &[spec.n_out, n_in, height, width]));
        for part in ["weight", "bias", "running_mean", "running_var"] {
            weights.push(formula(&format!("{}.bn.{part}", spec.name), &[spec.n_out]));
        }
        weights.push(HostTensor {
            name: format!("{}.bn.num_batches_tracked", spec.name),
            shape: Vec::new(),
            values: vec![0.0],
        });
        Ok(())
    };
    graph::build(graph::inception(kind), 3, list).unwrap();
    weights.push(formula("fc.weight", &[kind.classes(), DIMS]));
    weights.push(formula("fc.bias", &[kind.classes()]));
    weights.push(formula("AuxLogits.fc.bias", &[kind.classes()]));
    weights
}

fn network(kind: Kind, resize: Resize) -> Inception {
    Inception::new(weights(kind), resize, &Device::flex()).unwrap()
}

/// A contact sheet of drawings of 32×32 pixels, with four rows of eight. [`tiles`] are the upper
/// two rows.
fn sheet() -> RgbImage {
    image::open(fixture("sheet.png")).unwrap().to_rgb8()
}

fn tiles() -> Vec<RgbImage> {
    let sheet = sheet();
    (0..16).map(|i| sheet.view(i % 8 * 32, i / 8 * 32, 32, 32).to_image()).collect()
}

/// Pictures that are enlarged, reduced, or both. The last one needs no resizing.
fn few() -> Vec<RgbImage> {
    let sheet = sheet();
    let large = RgbImage::from_fn(512, 384, |x, y| *sheet.get_pixel(x % sheet.width(), y % sheet.height()));
    let cut = |x, width, height| large.view(x, 0, width, height).to_image();
    let small = cut(0, 32, 32);
    let (narrow, same) = (cut(10, 47, 350), cut(0, 299, 299));
    vec![small, sheet, large, narrow, same]
}

#[test]
fn prepared_pictures_match_three_reference_implementations() {
    let conventions = [Convention::PytorchFid, Convention::TorchFidelity, Convention::Torchvision];
    for (convention, (name, ..)) in conventions.into_iter().zip(CONVENTIONS) {
        let expected = golden(&format!("{name}.prepared"));
        let got: Vec<f32> =
            few().iter().flat_map(|picture| prepare(picture, convention).into_iter().step_by(STEP)).collect();
        assert_eq!(got.len(), expected.len());
        let errors = got.iter().zip(&expected).map(|(got, expected)| (f64::from(*got) - expected).abs());
        let error = errors.fold(0.0, f64::max);
        assert!(error < 1e-5, "{name}: maximum error {error}");
    }
}

/// Both of DM-GAN's conventions resize with Pillow. The expected values are Pillow's bytes,
/// recovered from torchvision's normalization and normalized as the graph of 2015 does.
#[test]
fn dm_gan_score_resizes_with_pillow() {
    for picture in few() {
        let scaled = prepare(&picture, Convention::Torchvision);
        let channels = scaled.chunks(SIDE * SIDE).zip([(0.458, -0.03), (0.448, -0.088), (0.45, -0.188)]);
        let expected = channels.flat_map(|(values, (scale, shift))| {
            values.iter().map(move |value| ((value - shift) / scale * 255.0).round() / 128.0 - 1.0)
        });
        assert!(prepare(&picture, Convention::DmGanScore).into_iter().eq(expected));
    }
    let same = &few()[4]; // This picture needs no resizing.
    assert_eq!(prepare(same, Convention::DmGanScore), prepare(same, Convention::TorchFidelity));
}

#[test]
fn dm_gan_uses_torchvision_for_fid_and_tf_2015_for_is() {
    let [fid, score] = [Kind::Torchvision, Kind::Tf2015].map(|kind| move || network(kind, Resize::DmGan));
    let both = DmGan::new(vec![score(), fid()]).unwrap();
    assert_eq!([both.distance(), both.score()].map(|network| network.unwrap().classes()), [1000, 1008]);
    let protocol = Protocol::DmGan(&both);
    assert!(protocol.ensure_enough(2048).unwrap_err().to_string().contains("at least 2112"));
    protocol.ensure_enough(2112).unwrap();
    let mut store = Store::open(None, "", protocol.distance().unwrap()).unwrap();
    let pictures = || tiles().into_iter().take(10).map(Ok);
    store.extract(protocol.distance().unwrap(), pictures(), |_| ()).unwrap();
    let extract = |network: &dyn FeatureExtractor| {
        let mut store = Store::open(None, "", network)?;
        store.extract(network, pictures(), |_| ())?;
        Ok(store)
    };
    let report = protocol.inception_score(&store, extract).unwrap().unwrap();
    assert!(
        report.features.contains("2015-12-05") && report.features.contains("DM-GAN"),
        "{}",
        report.features
    );
    assert!(report.plus_minus.is_some(), "ten splits");
    assert!(both.without_birds().unwrap_err().to_string().contains("birds_valid299"));

    let error = |networks| DmGan::new(networks).unwrap_err().to_string();
    assert!(error(vec![fid(), fid()]).contains("the same weights twice"));
    assert!(error(vec![network(Kind::Tf2015, Resize::PytorchFid)]).contains("not a network of DM-GAN's"));
    let none = DmGan::new(Vec::new()).unwrap();
    assert!(none.distance().unwrap_err().to_string().contains(TORCHVISION_URL));
    assert!(none.score().unwrap_err().to_string().contains(TF_2015_URL));
    none.without_birds().unwrap();
}

/// The largest absolute error, relative to the largest expected magnitude.
fn max_error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().map(|value| value.abs()).fold(0.0, f64::max);
    let errors = got.iter().zip(expected).map(|(got, expected)| (f64::from(*got) - expected).abs());
    errors.fold(0.0, f64::max) / largest
}

#[test]
fn features_and_logits_match_three_reference_implementations() {
    let pictures = &few()[..4];
    for (name, kind, resize) in CONVENTIONS {
        let extracted = network(kind, resize).extract(pictures).unwrap();
        let features = max_error(&extracted.features, &golden(&format!("{name}.features")));
        let logits = max_error(&extracted.logits, &golden(&format!("{name}.logits")));
        assert!(features < 1e-4 && logits < 1e-4, "{name}: features {features}, logits {logits}");
    }
}

/// The means of each 512 consecutive features. With eight pictures, only the covariance of a few
/// features has full rank.
fn means(features: &[f32]) -> Vec<f32> {
    features.chunks(512).map(|chunk| chunk.iter().sum::<f32>() / chunk.len() as f32).collect()
}

fn variances(vectors: &[f32], d: usize) -> f64 {
    let n = (vectors.len() / d) as f64;
    let variance = |i: usize| {
        let values = || vectors[i..].iter().step_by(d).map(|&value| f64::from(value));
        let mean = values().sum::<f64>() / n;
        values().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0)
    };
    (0..d).map(variance).sum()
}

fn near(what: &str, got: f64, expected: f64) {
    assert!((got / expected - 1.0).abs() < 1e-3, "{what}: {got}, expected {expected}");
}

#[test]
fn frechet_distance_matches_pytorch_fid() {
    let extracted = network(Kind::Tf2015, Resize::PytorchFid).extract(&tiles()).unwrap();
    let halves: Vec<&[f32]> = extracted.features.chunks(8 * DIMS).collect();
    let sets = halves.iter().zip(golden("traces")).map(|(half, trace)| {
        near("the trace of a covariance", variances(half, DIMS), trace);
        let mut set = Gaussian::new("", 4);
        half.chunks(DIMS).for_each(|features| set.push(&means(features)).unwrap());
        set
    });
    let sets: Vec<Gaussian> = sets.collect();
    near("the distance", frechet_distance(&sets[0], &sets[1]).unwrap(), golden("fid")[0]);
}

/// Compares the logarithm, because the score of an untrained network is close to 1.
#[test]
fn inception_score_matches_torch_fidelity() {
    let extracted = network(Kind::Tf2015, Resize::TorchFidelity).extract(&tiles()).unwrap();
    let mut score = InceptionScore::new("", 16, 1008, 1).unwrap();
    score.push_all(&extracted.logits).unwrap();
    near("its logarithm", score.report().unwrap().value.ln(), golden("inception_score")[0].ln());
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

#[test]
fn features_do_not_depend_on_the_batch() {
    let network = network(Kind::Tf2015, Resize::PytorchFid);
    let pictures = &tiles()[..PARALLEL + 1];
    let all = network.extract(pictures).unwrap();
    let last = network.extract(&pictures[PARALLEL..]).unwrap();
    assert_eq!((all.features.len(), all.logits.len()), (pictures.len() * DIMS, pictures.len() * 1008));
    assert!(max_error(&all.features[PARALLEL * DIMS..], &wide(&last.features)) < 1e-6);
    assert_eq!(network.extract(&[]).unwrap(), Features::default());
    assert!(network.extract(&[RgbImage::new(0, 3)]).unwrap_err().to_string().contains("no pixels"));
}

#[test]
fn kind_of_weights_is_detected_from_their_shapes() {
    let names = CONVENTIONS.map(|(_, kind, resize)| network(kind, resize).name());
    assert!(names[0].contains("2015-12-05") && names[0].contains("pytorch-fid"), "{}", names[0]);
    assert!(names[1].contains("2015-12-05") && names[1].contains("torch-fidelity"), "{}", names[1]);
    assert!(names[2].contains("torchvision"), "{}", names[2]);
    let error = Inception::new(weights(Kind::Torchvision), Resize::TorchFidelity, &Device::flex())
        .unwrap_err()
        .to_string();
    assert!(error.contains("belongs to the weights of 2015"), "{error}");
}

fn error(change: impl FnOnce(&mut Vec<HostTensor>)) -> String {
    let mut weights = weights(Kind::Tf2015);
    change(&mut weights);
    format!("{:#}", Inception::new(weights, Resize::PytorchFid, &Device::flex()).unwrap_err())
}

#[test]
fn weights_of_another_network_are_refused() {
    let at = |weights: &[HostTensor], name: &str| weights.iter().position(|w| w.name == name).unwrap();
    let few_classes = error(|weights| {
        let i = at(weights, "fc.weight");
        weights[i] = formula("fc.weight", &[52, DIMS]);
    });
    assert!(few_classes.contains("[52, 2048]; wanted [1008, 2048]"), "{few_classes}");
    let birds = error(|weights| {
        let i = at(weights, "fc.weight");
        weights[i] = formula("fc.weight", &[51, DIMS]);
    });
    assert!(birds.contains("51 classes") && birds.contains("birds, is not supported"), "{birds}");
    let no_classes = error(|weights| weights.retain(|w| !w.name.starts_with("fc.")));
    assert!(no_classes.contains("fc.weight is missing"), "{no_classes}");
    let narrow = error(|weights| {
        let i = at(weights, "Mixed_6b.branch7x7_2.conv.weight");
        weights[i].shape = vec![128, 128, 7, 1];
    });
    assert!(narrow.contains("branch7x7_2.conv.weight has shape [128, 128, 7, 1]; wanted [128, 128, 1, 7]"));
    let missing = error(|weights| drop(weights.remove(at(weights, "Mixed_7c.branch_pool.bn.running_var"))));
    assert!(missing.contains("Mixed_7c.branch_pool.bn.running_var is missing"), "{missing}");
    let more = error(|weights| weights.push(formula("Mixed_8a.conv.weight", &[1, 1, 1, 1])));
    assert!(more.contains("Mixed_8a.conv.weight is not one of Inception v3"), "{more}");
}

#[test]
fn missing_file_error_contains_the_download_urls() {
    let error = |path: &Path| {
        format!("{:#}", Inception::read(path, Resize::PytorchFid, &Device::flex()).unwrap_err())
    };
    let missing = error(Path::new("nowhere/inception.pth"));
    for part in ["nowhere/inception.pth: ", TF_2015_URL, TORCHVISION_URL, "--inception FILE"] {
        assert!(missing.contains(part), "{missing}");
    }
    assert_eq!(missing.lines().count(), 1);
    assert!(error(&fixture("sheet.png")).contains("not a PyTorch file"));
    assert!(error(&fixture("batch_norm.pth")).contains("fc.weight is missing"));
}
