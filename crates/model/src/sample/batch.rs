//! Continuous batching: the candidates of all requests are sampled together, each at its own
//! position. A finished candidate makes room for the next.
//!
//! A candidate is one picture in progress. The random numbers of its tokens depend only on (seed,
//! candidate, position), and rows of the sampler and pictures of the dVAE do not depend on each
//! other. So a candidate is bit-identical whatever else is in the batch.
//!
//! The candidates are divided into groups, and one thread runs a group through all layers. This is
//! faster than dividing every matrix product among all threads, which happens only if there are too
//! few candidates for one group per thread.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use image::RgbImage;
use rayon::prelude::*;
use tessera_kernels::Cpu;

use super::prefix_pool::PrefixPool;
use super::sampler::{KvSlots, Next, PrefixCache, Sampler};
use super::{Event, Picture, Ranking, Request, Token, choose, mosaics};
use crate::dvae::Dvae;
use crate::prior::PriorConfig;

/// The fewest rows for which a group with its own thread is worthwhile.
const GROUP_ROWS: usize = 8;

/// A request whose prompts are tokenized.
pub struct Job<'a> {
    /// The BPE tokens of the caption.
    pub caption: Vec<u32>,
    /// The BPE tokens of the negative prompt. No tokens mean the empty caption.
    pub negative: Vec<u32>,
    /// What to draw.
    pub request: Request,
    /// If present, only the pictures that it selects are yielded, at the end, best first.
    pub ranking: Option<Ranking<'a>>,
}

impl<'a> Job<'a> {
    /// A job without negative prompt and ranking: every picture is yielded when it is finished.
    pub fn new(caption: &[u32], request: Request) -> Job<'a> {
        Job { caption: caption.to_vec(), negative: Vec::new(), request, ranking: None }
    }

    /// The number of sampler rows per candidate.
    fn width(&self) -> usize {
        if self.request.sampling.is_guided() { 2 } else { 1 }
    }

    /// The number of sampler rows of all candidates.
    pub(super) fn rows(&self) -> usize {
        self.request.n.saturating_mul(self.width())
    }
}

/// A job and its progress.
struct Running<'a> {
    job: Job<'a>,
    /// The number of candidates that were started.
    started: usize,
    /// The number of candidates that are finished.
    finished: usize,
    /// The number of tokens so far, over all candidates.
    done: usize,
}

/// A picture in progress.
struct Candidate {
    job: u64,
    index: usize,
    tokens: Vec<u32>,
    /// One row with the caption and, with guidance, another with the negative or the empty caption.
    rows: Vec<Row>,
}

/// One sequence of the sampler.
#[derive(Clone, Copy)]
struct Row {
    /// The index of its caption in the prefix pool.
    caption: usize,
    /// The index of its slot in the KV cache of its group.
    slot: usize,
}

/// The candidates that one thread samples.
struct Group {
    slots: KvSlots,
    /// The slots that no candidate uses.
    free: Vec<usize>,
    candidates: Vec<Candidate>,
}

/// The results of one step for one job.
#[derive(Default)]
struct News {
    tokens: Vec<Token>,
    preview: Vec<Picture>,
    finished: Vec<Picture>,
}

impl News {
    /// Sorts the results by candidate, so that their order does not depend on the groups.
    fn sort(&mut self) {
        self.tokens.sort_by_key(|token| token.picture);
        for pictures in [&mut self.preview, &mut self.finished] {
            pictures.sort_by_key(|picture| picture.index);
        }
    }
}

impl Group {
    /// Samples one token of each candidate.
    fn step(
        &mut self,
        sampler: &Sampler,
        captions: &PrefixCache,
        requests: &BTreeMap<u64, &Request>,
    ) -> Result<()> {
        if self.candidates.is_empty() {
            return Ok(());
        }
        let next = |row: usize| {
            let rows = self.candidates.iter().filter_map(move |candidate| {
                let Row { caption, slot } = *candidate.rows.get(row)?;
                let previous = candidate.tokens.last().copied().unwrap_or(0);
                Some(Next { caption, slot, at: candidate.tokens.len(), previous })
            });
            rows.collect::<Vec<Next>>()
        };
        // Rows of the same caption are next to each other, because attention multiplies them
        // together with the caption's keys and values.
        let next = [next(0), next(1)].concat();
        let logits = sampler.step(captions, &mut self.slots, &next)?;
        let (cpu, vocab) = (sampler.cpu(), sampler.config().image_vocab);
        let (with, without) = logits.split_at(self.candidates.len() * vocab);
        let mut without = without.chunks_exact(vocab);
        let without: Vec<Option<&[f32]>> = self
            .candidates
            .iter()
            .map(|candidate| candidate.rows.get(1).and_then(|_| without.next()))
            .collect();
        let rows = with.par_chunks_exact(vocab).zip(without);
        self.candidates.par_iter_mut().zip(rows).for_each(|(candidate, (with, without))| {
            if let Some(request) = requests.get(&candidate.job) {
                candidate.tokens.push(pick(cpu, request, candidate, with, without));
            }
        });
        Ok(())
    }
}

/// Jobs that are drawn together.
pub struct Batch<'a> {
    sampler: &'a Sampler,
    dvae: &'a Dvae,
    captions: PrefixPool,
    groups: Vec<Group>,
    /// The jobs by their number; numbers are given in the order of arrival.
    jobs: BTreeMap<u64, Running<'a>>,
    next_job: u64,
}

impl<'a> Batch<'a> {
    /// The number of rows with the highest throughput on two cores. More rows only need more
    /// memory.
    pub const ROWS: usize = 32;

    /// An empty batch that samples about `rows` rows together. A candidate has one row, or two with
    /// guidance.
    pub fn new(sampler: &'a Sampler, dvae: &'a Dvae, rows: usize) -> Batch<'a> {
        // A device computes all rows together.
        let n_threads = if sampler.is_on_cpu() { rayon::current_num_threads() } else { 1 };
        let n_groups = (rows / GROUP_ROWS).clamp(1, n_threads);
        // An even number, so that candidates with guidance can use all rows.
        let rows = rows.div_ceil(n_groups).next_multiple_of(2).max(2);
        let group = |_| Group {
            slots: sampler.new_slots(rows),
            free: (0..rows).rev().collect(),
            candidates: Vec::new(),
        };
        Batch {
            sampler,
            dvae,
            captions: PrefixPool::new(sampler, n_groups * rows),
            groups: (0..n_groups).map(group).collect(),
            jobs: BTreeMap::new(),
            next_job: 0,
        }
    }

    /// Adds a job and returns its number, with which its events are labelled.
    ///
    /// # Errors
    /// If a sampling parameter is out of range, `n` is 0, or the given tokens do not fit the model.
    pub fn add(&mut self, job: Job<'a>) -> Result<u64> {
        let config = self.sampler.config();
        job.request.check(config)?;
        for tokens in [&job.caption, &job.negative] {
            if let Some(token) = tokens.iter().find(|&&token| token as usize >= config.text_vocab) {
                bail!("text token {token}: wanted less than {}", config.text_vocab);
            }
        }
        let id = self.next_job;
        self.next_job += 1;
        self.jobs.insert(id, Running { job, started: 0, finished: 0, done: 0 });
        Ok(id)
    }

    /// Removes a job, finished or not. This does not affect other jobs.
    pub fn remove(&mut self, id: u64) {
        self.jobs.remove(&id);
        self.release(|candidate| candidate.job == id);
    }

    /// Removes all jobs.
    pub fn clear(&mut self) {
        self.jobs.clear();
        self.release(|_| true);
    }

    /// Whether the batch has no jobs.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// The number of candidates that are being drawn.
    pub fn active(&self) -> usize {
        self.candidates().count()
    }

    fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.groups.iter().flat_map(|group| &group.candidates)
    }

    /// Removes the candidates for which `is_removed` holds, and frees their rows.
    fn release(&mut self, is_removed: impl Fn(&Candidate) -> bool) {
        for group in &mut self.groups {
            let removed = group.candidates.extract_if(.., |candidate| is_removed(candidate));
            for row in removed.flat_map(|candidate| candidate.rows) {
                self.captions.give_back(row.caption);
                group.free.push(row.slot);
            }
        }
    }

    /// Starts candidates while there are free rows. The job with the fewest candidates in progress
    /// comes first, so that a large job does not delay the others.
    fn admit(&mut self) -> Result<()> {
        loop {
            let in_progress = |id: &u64| self.candidates().filter(|c| c.job == *id).count();
            let waiting = self.jobs.iter().filter(|(_, running)| running.started < running.job.request.n);
            let Some(id) = waiting.map(|(id, _)| *id).min_by_key(in_progress) else { break };
            let Some(running) = self.jobs.get_mut(&id) else { break };
            let Some(group) = self.groups.iter_mut().max_by_key(|group| group.free.len()) else { break };
            if group.free.len() < running.job.width() {
                break;
            }
            let captions = [&running.job.caption, &running.job.negative];
            let mut rows = Vec::new();
            for caption in &captions[..running.job.width()] {
                let caption = self.captions.take(caption)?;
                rows.extend(group.free.pop().map(|slot| Row { caption, slot }));
            }
            let index = running.started;
            running.started += 1;
            group.candidates.push(Candidate { job: id, index, tokens: Vec::new(), rows });
        }
        for next in self.jobs.values().filter(|running| running.started == 0) {
            self.captions.expect(&next.job.caption);
        }
        self.captions.read(self.sampler)
    }

    /// Samples one token of each candidate that there is room for. Returns the events, each with
    /// the number of its job.
    ///
    /// # Errors
    /// If a computation fails. After an error only [`Batch::clear`] may be called.
    pub fn step(&mut self) -> Result<Vec<(u64, Event)>> {
        self.admit()?;
        let Batch { sampler, captions, jobs, .. } = self;
        let requests: BTreeMap<u64, &Request> =
            jobs.iter().map(|(id, running)| (*id, &running.job.request)).collect();
        self.groups.par_iter_mut().try_for_each(|group| group.step(sampler, &captions.states, &requests))?;
        self.report()
    }

    /// Decodes pictures where they are due and turns the results of a step into events.
    fn report(&mut self) -> Result<Vec<(u64, Event)>> {
        let PriorConfig { grid, .. } = *self.sampler.config();
        let shown = |candidate: &&Candidate| {
            let (done, running) = (candidate.tokens.len(), self.jobs.get(&candidate.job));
            done == grid * grid
                || running.is_some_and(|running| running.job.request.previews) && done.is_multiple_of(grid)
        };
        let mut pictures = self.pictures(&self.candidates().filter(shown).collect::<Vec<_>>())?.into_iter();
        let mut news: BTreeMap<u64, News> = BTreeMap::new();
        for candidate in self.candidates() {
            let news = news.entry(candidate.job).or_default();
            let position = candidate.tokens.len() - 1;
            let code = candidate.tokens[position];
            news.tokens.push(Token { picture: candidate.index, position, code });
            if shown(&candidate) {
                let is_finished = candidate.tokens.len() == grid * grid;
                (if is_finished { &mut news.finished } else { &mut news.preview }).extend(pictures.next());
            }
        }
        self.release(|candidate| candidate.tokens.len() == grid * grid);
        news.values_mut().for_each(News::sort);
        self.rank(&mut news)?;
        let mut events = Vec::new();
        for (id, news) in news {
            self.push_events(id, news, grid * grid, &mut events);
        }
        Ok(events)
    }

    /// Adds the finished pictures to the rankings of their jobs. All jobs are handled together.
    fn rank(&mut self, news: &mut BTreeMap<u64, News>) -> Result<()> {
        let started = self.jobs.iter_mut().filter(|(_, running)| running.started > 0);
        let additions = started.filter_map(|(id, running)| {
            let ranking = running.job.ranking.as_mut()?;
            let finished =
                news.get_mut(id).map(|news| std::mem::take(&mut news.finished)).unwrap_or_default();
            running.finished += finished.len();
            Some((ranking, finished))
        });
        Ranking::add(&mut additions.collect::<Vec<_>>())
    }

    /// Appends the events of one job to `events`, and removes the job if it is finished.
    fn push_events(&mut self, id: u64, news: News, len: usize, events: &mut Vec<(u64, Event)>) {
        let Some(running) = self.jobs.get_mut(&id) else { return };
        let n = running.job.request.n;
        running.done += news.tokens.len();
        running.finished += news.finished.len();
        events.push((id, Event::Tokens { new: news.tokens, done: running.done, total: n * len }));
        if !news.preview.is_empty() {
            events.push((id, Event::Preview(news.preview)));
        }
        let finished = match &mut running.job.ranking {
            None => news.finished,
            Some(ranking) if running.finished == n => ranking.take(),
            Some(_) => Vec::new(),
        };
        events.extend(finished.into_iter().map(|picture| (id, Event::Picture(picture))));
        if running.finished == n {
            self.jobs.remove(&id);
        }
    }

    /// The pictures of candidates, finished or not. Missing cells are white, unless their token is
    /// given.
    fn pictures(&self, candidates: &[&Candidate]) -> Result<Vec<Picture>> {
        let grid = self.sampler.config().grid;
        let known = |candidate: &&Candidate| -> Vec<Option<u32>> {
            let request = self.jobs.get(&candidate.job).map(|running| &running.job.request);
            let given = |at| request.and_then(|request| request.given(candidate.index, at));
            (0..grid * grid).map(|at| candidate.tokens.get(at).copied().or_else(|| given(at))).collect()
        };
        let images = mosaics(self.dvae, grid, &candidates.iter().map(known).collect::<Vec<_>>())?;
        let picture = |(candidate, image): (&&Candidate, RgbImage)| {
            let Candidate { index, ref tokens, .. } = **candidate;
            Picture { index, tokens: tokens.clone(), image, score: None }
        };
        Ok(candidates.iter().zip(images).map(picture).collect())
    }
}

/// The next token of a candidate: the given one, or one sampled from its logits. `with` are the
/// logits with the caption, `without` those of its second row, if guidance is on.
fn pick(cpu: Cpu, request: &Request, candidate: &Candidate, with: &[f32], without: Option<&[f32]>) -> u32 {
    let (index, at) = (candidate.index, candidate.tokens.len());
    if let Some(given) = request.given(index, at) {
        return given;
    }
    let (sampling, u) = (&request.sampling, request.unit(index, at));
    match without {
        None => choose(cpu, with, sampling, u),
        Some(without) => choose(cpu, &guide(with, without, sampling.guidance as f32), sampling, u),
    }
}

/// Classifier-free guidance of logits.
fn guide(with: &[f32], without: &[f32], guidance: f32) -> Vec<f32> {
    with.iter().zip(without).map(|(with, without)| without + guidance * (with - without)).collect()
}
