//! What the server counts, in Prometheus' form.

use anyhow::Result;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

/// All counters; one for each server.
pub struct Metrics {
    registry: Registry,
    /// Requests by route and status.
    pub requests: IntCounterVec,
    /// From the head of a request to the head of its answer, by route.
    pub seconds: HistogramVec,
    /// Requests that are drawn or wait.
    pub pending: IntGauge,
    /// Requests whose client left.
    pub cancelled: IntCounter,
    /// Pictures given out.
    pub pictures: IntCounter,
    /// Tokens drawn.
    pub tokens: IntCounter,
    /// Steps of the batch.
    pub steps: IntCounter,
    /// Candidates in a step.
    pub drawn_together: Histogram,
}

impl Metrics {
    /// All at zero.
    ///
    /// # Errors
    /// If a name is no name.
    pub fn new() -> Result<Metrics> {
        let registry = Registry::new();
        let seconds = HistogramOpts::new("tessera_request_seconds", "Time to the head of the answer.")
            .buckets(vec![0.005, 0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]);
        let together = HistogramOpts::new("tessera_drawn_together", "Candidates in a step of the batch.")
            .buckets(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]);
        let metrics = Metrics {
            requests: IntCounterVec::new(
                Opts::new("tessera_requests_total", "Requests by route and status."),
                &["route", "status"],
            )?,
            seconds: HistogramVec::new(seconds, &["route"])?,
            pending: IntGauge::new("tessera_pending_requests", "Requests that are drawn or wait for it.")?,
            cancelled: IntCounter::new("tessera_cancelled_total", "Requests whose client left.")?,
            pictures: IntCounter::new("tessera_pictures_total", "Pictures given out.")?,
            tokens: IntCounter::new("tessera_tokens_total", "Picture tokens drawn.")?,
            steps: IntCounter::new("tessera_steps_total", "Steps of the batch.")?,
            drawn_together: Histogram::with_opts(together)?,
            registry,
        };
        metrics.register()?;
        Ok(metrics)
    }

    fn register(&self) -> Result<()> {
        self.registry.register(Box::new(self.requests.clone()))?;
        self.registry.register(Box::new(self.seconds.clone()))?;
        self.registry.register(Box::new(self.pending.clone()))?;
        self.registry.register(Box::new(self.drawn_together.clone()))?;
        for counter in [&self.cancelled, &self.pictures, &self.tokens, &self.steps] {
            self.registry.register(Box::new(counter.clone()))?;
        }
        Ok(())
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn text(&self) -> Result<String> {
        let mut bytes = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut bytes)?;
        Ok(String::from_utf8(bytes)?)
    }
}
