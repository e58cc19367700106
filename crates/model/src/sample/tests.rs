//! Tests of drawing: results that do not depend on batch or threads, logits, the order of events,
//! ranking, variations.

use std::collections::BTreeSet;

use burn::tensor::Device;
use tessera_text::Bpe;

use tessera_kernels::Cpu;
use tessera_kernels::decode::Weights;

use super::*;
use crate::dvae::{Dvae, DvaeConfig};
use crate::finite_differences::stirred;
use crate::prior::{Layout, Logits, Prior, PriorConfig, Stream, Wrap, caption_slots};
use crate::rerank::{Cleaning, Clip, ClipConfig, Gelu, Reranker, TowerConfig, cosine_similarity};

fn model() -> (Prior, Dvae) {
    model_on(Cpu::best())
}

fn model_on(cpu: Cpu) -> (Prior, Dvae) {
    let dvae = DvaeConfig {
        image_size: 8,
        groups: 2,
        blocks_per_group: 1,
        n_hid: 4,
        n_init: 4,
        vocab: 12,
        min_log_b: -3.0,
    };
    let prior = PriorConfig {
        text_len: 4,
        text_vocab: 9,
        grid: 4,
        image_vocab: 12,
        d_model: 16,
        n_layers: 3,
        n_heads: 2,
        conv_kernel: 3,
        conv_wrap: Wrap::Flat,
        logits: Logits::Auto,
        layout: Layout::default(),
    };
    (stirred(Prior::new(&prior, 1, cpu), 0.4), Dvae::new(&dvae, 2, cpu))
}

fn request(n: usize, seed: u64) -> Request {
    Request { n, seed, ..Request::default() }
}

fn draw(request: Request) -> Vec<Picture> {
    let (prior, dvae) = model();
    let sampler = Sampler::new(&prior, Weights::Full).unwrap();
    let events = Drawing::new(&sampler, &dvae, &[1, 2], request).unwrap();
    let picture = |event| match event {
        Ok(Event::Picture(picture)) => Some(picture),
        Ok(_) => None,
        Err(error) => panic!("{error}"),
    };
    events.filter_map(picture).collect()
}

fn same(a: &[Picture], b: &[Picture]) -> bool {
    a.iter().zip(b).all(|(a, b)| (a.index, &a.tokens, &a.image) == (b.index, &b.tokens, &b.image))
}

#[test]
fn a_picture_does_not_depend_on_how_many_are_drawn() {
    let many = draw(request(135, 5)); // more candidates than slots
    assert_eq!(many.len(), 135);
    for n in [1, 2, 16, 17, 65] {
        assert!(same(&draw(request(n, 5)), &many), "n = {n}");
    }
    let distinct: std::collections::HashSet<_> = many.iter().map(|p| &p.tokens).collect();
    assert!(distinct.len() > 120, "candidates repeat: {} of 135 differ", distinct.len());
    assert!(!same(&draw(request(3, 6)), &many));
}

#[test]
fn a_picture_does_not_depend_on_the_number_of_threads() {
    let guided = || Request { sampling: Sampling { guidance: 2.0, ..Sampling::default() }, ..request(3, 9) };
    let with_threads = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| draw(guided()))
    };
    let one = with_threads(1);
    assert!(same(&with_threads(2), &one) && same(&with_threads(5), &one));
}

#[test]
fn sampler_logits_equal_those_of_the_forward_pass() {
    for cpu in Cpu::all() {
        for weights in [Weights::Full, Weights::Int8] {
            check_sampler_against_forward(cpu, weights);
        }
    }
}

/// The only layer has zero weights, so the input of the head is exact in any precision. With
/// `Logits::F32` the logits then equal those of f32 up to rounding, although the layers use bf16
/// products and 8-bit weights.
#[test]
fn sampler_computes_logits_in_f32_if_the_config_says_so() {
    let largest_error = |logits: Logits, cpu: Cpu| {
        let (prior, _) = model();
        let config = PriorConfig { logits, n_layers: 1, ..prior.config().clone() };
        let image: Vec<u32> = (0..16).map(|i| i * 7 % 12).collect();
        let logits = |cpu: Cpu, weights| {
            let mut prior = stirred(Prior::new(&config, 1, cpu), 0.4);
            for linear in prior.blocks.iter_mut().flat_map(|block| [&mut block.attn_out, &mut block.mlp_out])
            {
                linear.weight = linear.weight.clone().map(|weight| weight.zeros_like());
                linear.bias = linear.bias.clone().map(|bias| bias.zeros_like());
            }
            decoded(&Sampler::new(&prior.in_int8(), weights).unwrap(), &[&[1, 2]], vec![0], &image)
        };
        let (exact, got) = (logits(cpu.in_f32(), Weights::Full), logits(cpu, Weights::Int8));
        exact.iter().zip(&got).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()))
    };
    for cpu in Cpu::all() {
        let (exact, auto) = (largest_error(Logits::F32, cpu), largest_error(Logits::Auto, cpu));
        assert!(exact < 1e-5, "{cpu}: {exact}");
        assert!(!cpu.bf16() || auto > 1e-4, "{cpu}: {auto}");
    }
}

/// Compares the sampler with one forward pass, for three pictures of two captions. The forward pass
/// uses weights rounded like those of the sampler.
///
/// In f32 the logits are the same. In bf16 the sampler may be about as far from f32 as the forward
/// pass, because 8-bit weights are exact in the sampler and are rounded again in the forward pass.
fn check_sampler_against_forward(cpu: Cpu, weights: Weights) {
    let prior = |cpu: Cpu| match weights {
        Weights::Full => model_on(cpu).0,
        Weights::Int8 => model_on(cpu).0.in_int8(),
    };
    let (exact, prior) = (prior(cpu.in_f32()), prior(cpu));
    let captions: [&[u32]; 2] = [&[1, 2], &[]];
    let prefixes = vec![1, 0, 1];
    let image: Vec<u32> = (0..3 * 16).map(|i| i * 7 % 12).collect();
    let forward = |prior: &Prior| {
        let text =
            prefixes.iter().flat_map(|&prefix: &usize| caption_slots(captions[prefix], prior.config()).0);
        let stream = Stream::new(3, text.collect(), image.clone(), prior.config()).unwrap();
        prior.forward(&stream).1.into_data().try_to_vec::<f32>().unwrap()
    };
    let sampler = Sampler::new(&prior, weights).unwrap();
    let got = decoded(&sampler, &captions, prefixes.clone(), &image);
    let exact = forward(&exact);
    let rms_error = |values: &[f32]| {
        let squares = values.iter().zip(&exact).map(|(value, exact)| f64::from(value - exact).powi(2));
        (squares.sum::<f64>() / exact.len() as f64).sqrt()
    };
    let allowed = if cpu.bf16() { 1.5 * rms_error(&forward(&prior)) } else { 1e-5 };
    let error = rms_error(&got);
    assert!(error < allowed, "{cpu}, {weights:?}: {error} from f32, wanted {allowed}");
    if !cpu.bf16() {
        let composed = decoded(&Sampler::of_tensors(&prior), &captions, prefixes.clone(), &image);
        let error = rms_error(&composed);
        assert!(error < allowed, "{weights:?}, Burn's operations: {error} from f32, wanted {allowed}");
    }
}

/// The sampler's logits of each slot and token, in the order of [`Prior::forward`].
fn decoded(sampler: &Sampler, captions: &[&[u32]], prefixes: Vec<usize>, image: &[u32]) -> Vec<f32> {
    let read = sampler.read(captions).unwrap();
    let mut slots = sampler.new_slots(prefixes.len());
    let mut logits = vec![0.0; image.len() * 12];
    // Each slot starts two steps later than the previous one.
    for step in 0..16 + 2 * (prefixes.len() - 1) {
        let next = |(slot, &caption): (usize, &usize)| {
            let at = step.checked_sub(2 * slot).filter(|at| *at < 16)?;
            let previous = image[slot * 16..][..at].last().copied().unwrap_or(0);
            Some(Next { caption, slot, at, previous })
        };
        let next: Vec<Next> = prefixes.iter().enumerate().filter_map(next).collect();
        let rows = sampler.step(&read, &mut slots, &next).unwrap();
        for (Next { slot, at, .. }, row) in next.into_iter().zip(rows.chunks(12)) {
            logits[(slot * 16 + at) * 12..][..12].copy_from_slice(row);
        }
    }
    let next = |slot, at, previous| [Next { caption: 0, slot, at, previous }];
    for (bad, wanted) in
        [(next(0, 16, 0), "16 tokens"), (next(9, 0, 0), "slot 9"), (next(0, 1, 13), "token 13")]
    {
        let error = sampler.step(&read, &mut slots, &bad).err().unwrap().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    logits
}

/// If the upper half of a picture is given, its lower half is sampled exactly as in the original
/// picture.
#[test]
fn given_tokens_are_kept_and_the_others_are_sampled() {
    let whole = draw(request(3, 5));
    let given: Vec<Option<u32>> =
        whole[1].tokens.iter().enumerate().map(|(at, &token)| (at < 8).then_some(token)).collect();
    let halves = draw(Request { given: given.clone(), ..request(3, 5) });
    assert!(halves.iter().all(|picture| picture.tokens[..8] == whole[1].tokens[..8]));
    assert_eq!(halves[1].tokens, whole[1].tokens);
    assert_ne!(halves[0].tokens[8..], halves[1].tokens[8..]);
    // A token in the middle may be given, too.
    let island = (0..16).map(|at| (at == 6).then_some(11)).collect();
    assert!(draw(Request { given: island, ..request(3, 5) }).iter().all(|picture| picture.tokens[6] == 11));
}

#[test]
fn paper_sampling_follows_the_models_distribution() {
    let (prior, _) = model();
    // The logits of a picture's first token depend on no other token.
    let sampler = Sampler::new(&prior, Weights::Full).unwrap();
    let logits = decoded(&sampler, &[&[1, 2]], vec![0], &[0; 16])[..12].to_vec();
    let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
    let n = 3000;
    // χ² of the first tokens against softmax(logits), which has 11 degrees of freedom.
    let chi_squared = |sampling: Sampling| {
        let mut counts = [0.0; 12];
        let pictures = draw(Request { sampling, previews: false, ..request(n, 3) });
        pictures.iter().for_each(|picture| counts[picture.tokens[0] as usize] += 1.0);
        let wanted = logits.iter().map(|logit| n as f64 * f64::from(*logit).exp() / total);
        wanted.zip(counts).map(|(wanted, count): (f64, f64)| (count - wanted).powi(2) / wanted).sum::<f64>()
    };
    let paper = chi_squared(Sampling::paper());
    assert!(paper < 35.0, "χ² is {paper}"); // larger for one seed in 4,000
    for other in [
        Sampling { temperature: 0.5, ..Sampling::paper() },
        Sampling { top_k: Some(6), ..Sampling::paper() },
        Sampling { top_p: Some(0.7), ..Sampling::paper() },
        Sampling { guidance: 3.0, ..Sampling::paper() },
    ] {
        let found = chi_squared(other.clone());
        assert!(found > 35.0, "{other:?} is not detected: χ² is {found}");
    }
}

#[test]
fn events_come_in_order() {
    let (prior, dvae) = model();
    let sampler = Sampler::new(&prior, Weights::Full).unwrap();
    let events: Vec<_> =
        Drawing::new(&sampler, &dvae, &[], request(2, 0)).unwrap().map(Result::unwrap).collect();
    let tokens = events.iter().filter(|event| matches!(event, Event::Tokens { total: 32, .. })).count();
    let previews: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Preview(pictures) => Some((pictures.len(), pictures[0].tokens.len())),
            _ => None,
        })
        .collect();
    assert_eq!((tokens, previews), (16, vec![(2, 4), (2, 8), (2, 12)]));
    let [.., Event::Tokens { done: 32, .. }, Event::Picture(first), Event::Picture(last)] = &events[..]
    else {
        panic!("the last events are not the pictures");
    };
    assert_eq!((first.index, last.index, first.tokens.len()), (0, 1, 16));
}

#[test]
fn invalid_settings_are_errors() {
    let (prior, dvae) = model();
    let sampler = Sampler::new(&prior, Weights::Full).unwrap();
    let error = |sampling: Sampling, n| {
        let request = Request { n, sampling, ..Request::default() };
        Drawing::new(&sampler, &dvae, &[], request).err().unwrap().to_string()
    };
    let default = Sampling::default;
    assert!(error(default(), 0).contains("wanted at least 1"));
    assert!(error(Sampling { temperature: -1.0, ..default() }, 1).contains("temperature -1"));
    assert!(error(Sampling { top_p: Some(1.5), ..default() }, 1).contains("top-p 1.5"));
    assert!(error(Sampling { top_k: Some(0), ..default() }, 1).contains("top-k 0"));
    for guidance in [f64::NAN, f64::INFINITY, 1001.0, -1e39] {
        assert!(error(Sampling { guidance, ..default() }, 1).contains("wanted a number from -1000 to 1000"));
    }
    let given = |given: Vec<Option<u32>>| {
        let request = Request { given, ..Request::default() };
        Drawing::new(&sampler, &dvae, &[], request).err().unwrap().to_string()
    };
    assert!(given(vec![None; 15]).contains("15 given tokens: wanted none, or one entry for each of 16"));
    assert!(given(vec![Some(12); 16]).contains("wanted one of 12 codes"));
    let refused = |request: Request| Drawing::new(&sampler, &dvae, &[], request).err().unwrap().to_string();
    assert!(refused(Request { strength: 1.5, ..Request::default() }).contains("strength 1.5: wanted 0 to 1"));
    let unguided = Request { negative: "red".into(), sampling: Sampling::paper(), ..Request::default() };
    assert!(refused(unguided).contains("through guidance, which is off"));
}

/// An untrained contrastive model. Its scores are arbitrary but suffice to define an order.
fn reranker() -> Reranker {
    let tower = |width| TowerConfig { width, n_layers: 1, n_heads: 1 };
    let config = ClipConfig {
        image_size: 8,
        patch: 4,
        image: tower(16),
        context: 8,
        text_vocab: 300,
        text: tower(16),
        embed: 8,
        gelu: Gelu::Quick,
        cleaning: Cleaning::Tessera,
        mean: [0.5; 3],
        deviation: [0.25; 3],
    };
    let bpe = Bpe::train(["a red apple"].iter(), 256).unwrap();
    Reranker { clip: stirred(Clip::new(&config, 3, &Device::flex()), 0.4), bpe }
}

fn ranked(request: Request, keep: usize) -> Vec<Picture> {
    let ((prior, dvae), reranker) = (model(), reranker());
    let sampler = Sampler::new(&prior, Weights::Full).unwrap();
    let ranking = Ranking::new(&reranker, "a red apple", keep).unwrap();
    let job = Job { ranking: Some(ranking), ..Job::new(&[1, 2], request) };
    let drawing = Drawing::of(&sampler, &dvae, job).unwrap();
    let picture = |event| match event {
        Ok(Event::Picture(picture)) => Some(picture),
        Ok(_) => None,
        Err(error) => panic!("{error}"),
    };
    drawing.filter_map(picture).collect()
}

#[test]
fn the_best_come_first_and_are_those_of_all_candidates() {
    let all = ranked(request(135, 5), 135); // more candidates than slots
    let score = |picture: &Picture| picture.score.unwrap();
    assert!(all.windows(2).all(|pair| score(&pair[0]) >= score(&pair[1])));
    assert!(score(&all[0]) > score(&all[134]));
    let mut drawn = draw(request(135, 5));
    drawn.sort_by_key(|picture| all.iter().position(|ranked| ranked.index == picture.index));
    assert!(same(&all, &drawn));
    let best = ranked(request(135, 5), 7);
    assert_eq!(best.len(), 7);
    assert!(same(&best, &all[..7]));
    // The score of a picture is that of its embedding and does not depend on the other pictures.
    let reranker = reranker();
    let caption = reranker.captions(&["a red apple"]).unwrap().remove(0).embedding;
    let alone = reranker.pictures(&[all[3].image.clone()]).unwrap().remove(0);
    assert_eq!(cosine_similarity(&alone, &caption), score(&all[3]));
}

/// All different pictures come before any repetition.
#[test]
fn best_pictures_repeat_only_if_too_few_differ() {
    let given = (0..16).map(|at| (at % 5 != 4).then_some(3)).collect::<Vec<_>>(); // except 3 cells
    let sampling = Sampling { top_k: Some(2), ..Sampling::paper() };
    let few = || Request { given: given.clone(), sampling: sampling.clone(), ..request(60, 5) };
    let distinct =
        |pictures: &[Picture]| pictures.iter().map(|p| p.tokens.clone()).collect::<BTreeSet<_>>().len();
    let all = ranked(few(), 60);
    let n = distinct(&all);
    assert!((5..=8).contains(&n), "{n} of 60 differ");
    let mut differing = all.clone();
    let mut seen = BTreeSet::new();
    differing.retain(|picture| seen.insert(picture.tokens.clone()));
    assert!(same(&ranked(few(), 3), &differing[..3]));
    assert!(same(&ranked(few(), n), &differing));
    let more = ranked(few(), n + 2);
    assert_eq!((more.len(), distinct(&more)), (n + 2, n));
    assert!(more.windows(2).all(|pair| pair[0].score >= pair[1].score));
}

/// Three requests with different prompts, one of them guided, share a batch that is too small for
/// all. The last is added while the others are drawn, and another one is added and removed. Each
/// picture is the same as in a batch of its request alone.
#[test]
fn requests_in_one_batch_do_not_affect_each_other() {
    let (prior, dvae) = model();
    let sampler = Sampler::new(&prior, Weights::Full).unwrap();
    let guided = Sampling { guidance: 2.0, ..Sampling::default() };
    let job = |caption: &[u32], n: usize, seed: u64, sampling: &Sampling| {
        let request = Request { sampling: sampling.clone(), ..request(n, seed) };
        Job { negative: if n == 3 { vec![5] } else { Vec::new() }, ..Job::new(caption, request) }
    };
    let paper = Sampling::paper();
    let jobs = || [job(&[1, 2], 5, 7, &paper), job(&[3], 3, 8, &guided), job(&[4, 4, 4], 2, 7, &paper)];
    let alone: Vec<Vec<Picture>> = jobs()
        .into_iter()
        .map(|job| {
            let events = Drawing::of(&sampler, &dvae, job).unwrap().map(Result::unwrap);
            events
                .filter_map(|event| if let Event::Picture(picture) = event { Some(picture) } else { None })
                .collect()
        })
        .collect();
    for rows in [2, 3, 6, 64] {
        let mut batch = Batch::new(&sampler, &dvae, rows);
        let mut together: Vec<Vec<Picture>> = vec![Vec::new(); 4];
        let mut waiting = jobs().into_iter();
        let mut step = 0;
        while !batch.is_empty() || step <= 20 {
            if [0, 1, 20].contains(&step) {
                let id = batch.add(waiting.next().unwrap()).unwrap();
                assert!(id < 4);
            }
            if step == 5 {
                let id = batch.add(job(&[1, 1], 9, 1, &guided)).unwrap();
                assert_eq!(id, 2);
            }
            if step == 12 {
                batch.remove(2);
            }
            for (id, event) in batch.step().unwrap() {
                if let Event::Picture(picture) = event {
                    together[id as usize].push(picture);
                }
            }
            step += 1;
        }
        assert!(together[2].is_empty());
        for (alone, id) in alone.iter().zip([0, 1, 3]) {
            together[id].sort_by_key(|picture| picture.index);
            assert_eq!(together[id].len(), alone.len());
            assert!(same(&together[id], alone), "job {id} among {rows} rows");
        }
    }
}

/// The request with the fewest candidates in progress comes first, so that a large request does not
/// delay a small one.
#[test]
fn small_request_is_not_delayed_by_a_large_one() {
    let (prior, dvae) = model();
    let sampler = Sampler::new(&prior, Weights::Full).unwrap();
    let mut batch = Batch::new(&sampler, &dvae, 4);
    let plain = |n| Request { sampling: Sampling::paper(), ..request(n, 1) };
    let large = batch.add(Job::new(&[1], plain(40))).unwrap();
    batch.step().unwrap();
    let small = batch.add(Job::new(&[2], plain(1))).unwrap();
    let mut order = Vec::new();
    while !batch.is_empty() {
        let pictures =
            batch.step().unwrap().into_iter().filter(|(_, event)| matches!(event, Event::Picture(_)));
        order.extend(pictures.map(|(id, _)| id));
    }
    // First the four that were in progress, then the small request within the next four.
    assert_eq!(order.len(), 41);
    let place = order.iter().position(|id| *id == small).unwrap();
    assert!((4..8).contains(&place) && order[0] == large, "{order:?}");
}

/// The fraction of changed tokens grows with the strength, and each picture changes others.
/// Strength 1 ignores the given tokens.
#[test]
fn variations_resample_a_fraction_of_the_given_tokens() {
    let whole = draw(request(1, 5)).remove(0);
    let given: Vec<Option<u32>> = whole.tokens.iter().copied().map(Some).collect();
    let vary = |strength| draw(Request { given: given.clone(), strength, ..request(40, 6) });
    let changed = |pictures: &[Picture]| {
        let changed = |p: &Picture| p.tokens.iter().zip(&whole.tokens).filter(|(a, b)| a != b).count();
        pictures.iter().map(changed).sum::<usize>() as f64 / 640.0
    };
    assert_eq!(changed(&vary(0.0)), 0.0);
    let [some, most, all] = [0.25, 0.75, 1.0].map(|strength| changed(&vary(strength)));
    assert!(0.1 < some && some < 0.25 && some < most && most < all, "{some} {most} {all}");
    assert!(same(&vary(1.0), &draw(request(40, 6))));
    let varied = vary(0.5);
    assert!(varied.windows(2).all(|pair| pair[0].tokens != pair[1].tokens));
}

#[test]
fn previews_show_sampled_and_given_cells() {
    let (prior, dvae) = model();
    let sampler = Sampler::new(&prior, Weights::Full).unwrap();
    // The last row is given.
    let given = (0..16).map(|at| (at >= 12).then_some(3)).collect();
    let events = Drawing::new(&sampler, &dvae, &[], Request { given, ..request(1, 0) }).unwrap();
    let preview = events.map(Result::unwrap).find_map(|event| match event {
        Event::Preview(pictures) => Some(pictures[0].image.clone()),
        _ => None,
    });
    let image = preview.unwrap();
    let white = |y: u32| (0..8).all(|x| image.get_pixel(x, y).0 == [255; 3]);
    // The first row of cells is sampled, the next two are missing, the last is given. A row of
    // cells is two pixels high.
    assert_eq!((0..8).map(white).collect::<Vec<_>>(), [false, false, true, true, true, true, false, false]);
}

#[test]
fn random_seeds_are_short_and_differ() {
    let seeds = [(); 4].map(|()| random_seed());
    assert!(seeds.iter().all(|&seed| seed < 1_000_000_000), "{seeds:?}");
    assert!(seeds[1..].iter().any(|seed| *seed != seeds[0]), "{seeds:?}");
}
