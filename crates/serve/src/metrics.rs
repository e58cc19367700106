//! The metrics of the server, in the format of Prometheus.

use anyhow::Result;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

/// The metrics of one server.
pub struct Metrics {
    registry: Registry,
    /// The number of requests by route and status.
    pub requests: IntCounterVec,
    /// The time from the head of a request to the head of its answer, by route.
    pub seconds: HistogramVec,
    /// The number of requests that are being drawn or waiting.
    pub pending: IntGauge,
    /// The number of requests whose client disconnected.
    pub cancelled: IntCounter,
    /// The number of finished pictures.
    pub pictures: IntCounter,
    /// The number of sampled image tokens.
    pub tokens: IntCounter,
    /// The number of steps of the batch.
    pub steps: IntCounter,
    /// The number of candidates per step of the batch.
    pub drawn_together: Histogram,
}

impl Metrics {
    /// Creates all metrics with the value 0.
    ///
    /// # Errors
    /// If a name of a metric is invalid.
    pub fn new() -> Result<Metrics> {
        let registry = Registry::new();
        let seconds = HistogramOpts::new("tessera_request_seconds", "Time to the head of the answer.")
            .buckets(vec![0.005, 0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]);
        let together = HistogramOpts::new("tessera_drawn_together", "Candidates per step of the batch.")
            .buckets(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]);
        let metrics = Metrics {
            requests: IntCounterVec::new(
                Opts::new("tessera_requests_total", "Requests by route and status."),
                &["route", "status"],
            )?,
            seconds: HistogramVec::new(seconds, &["route"])?,
            pending: IntGauge::new("tessera_pending_requests", "Requests that are being drawn or waiting.")?,
            cancelled: IntCounter::new("tessera_cancelled_total", "Requests whose client disconnected.")?,
            pictures: IntCounter::new("tessera_pictures_total", "Finished pictures.")?,
            tokens: IntCounter::new("tessera_tokens_total", "Sampled image tokens.")?,
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

    /// Returns all metrics in the text format of Prometheus.
    ///
    /// # Errors
    /// If the metrics cannot be encoded.
    pub fn text(&self) -> Result<String> {
        let mut bytes = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut bytes)?;
        Ok(String::from_utf8(bytes)?)
    }
}
