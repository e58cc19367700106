//! probe
use std::time::Instant;
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData, Distribution};
use tessera_model::{dvae::*, prior::*};
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;
fn main() {
    let a: Vec<usize> = std::env::args().skip(2).map(|a| a.parse().unwrap()).collect();
    let which = std::env::args().nth(1).unwrap();
    let device = Device::default();
    let threads = 2;
    let work = |n: usize, f: &(dyn Fn() + Sync)| {
        f();
        let t = Instant::now();
        for _ in 0..n { f(); }
        println!("{which} {a:?} all threads, one after another: {:.1} ms", t.elapsed().as_secs_f64() * 1e3 / n as f64);
        let t = Instant::now();
        std::thread::scope(|s| for _ in 0..threads { s.spawn(|| {
            rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| for _ in 0..n { f(); })
        }); });
        println!("{which} {a:?} two in parallel, each: {:.1} ms", t.elapsed().as_secs_f64() * 1e3 / n as f64 / threads as f64);
    };
    if which == "prior" {
        let [b, d, layers, heads, grid] = a[..] else { panic!() };
        let c = PriorConfig { text_len: 24, text_vocab: 2048, grid, image_vocab: 1024, d_model: d, n_layers: layers, n_heads: heads, conv_kernel: 2 * grid - 1 };
        let m = Prior::new(&c, 0, &device);
        println!("params {}", m.num_params());
        work(5, &|| {
            let m = m.clone().train();
            let s = Stream::new(b, vec![3; b * 24], vec![5; b * grid * grid], &c).unwrap();
            let (t, i) = m.forward(&s);
            let l = weighted_cross_entropy(t, i, &s);
            let _g = l.loss.backward();
        });
    } else {
        let [b, hid, groups, blocks, size, vocab] = a[..] else { panic!() };
        let c = DvaeConfig { image_size: size, groups, blocks_per_group: blocks, n_hid: hid, n_init: 64, vocab, min_log_b: -3.0 };
        let m = Dvae::new(&c, 0, &device);
        println!("params {}", m.num_params());
        let x: Tensor<4> = Tensor::random([b, 3, size, size], Distribution::Uniform(0.0, 1.0), &device);
        work(3, &|| {
            let m = m.clone().train();
            let x = map_pixels(x.clone()).autodiff();
            let logits = m.encoder.forward(x.clone());
            let n = gumbel_noise(b * vocab * c.grid() * c.grid(), &mut <rand_chacha::ChaCha8Rng as rand_chacha::rand_core::SeedableRng>::seed_from_u64(1));
            let noise = Tensor::from_data(TensorData::new(n, logits.dims()), &device).autodiff();
            let z = gumbel_softmax(logits.clone(), noise, 1.0);
            let e = elbo(x, m.decoder.forward(z), logits, 1.0, -3.0);
            let _g = e.loss.backward();
        });
    }
}
