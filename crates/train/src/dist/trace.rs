//! A record of what a rank does and when (`--profile`), as a Chrome trace, which Perfetto opens.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::lane::Lane;

/// Records spans of time. Clones share the record.
#[derive(Debug, Clone)]
pub struct Trace {
    start: Instant,
    spans: Arc<Mutex<Vec<Span>>>,
}

/// What was done in a span of time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Span {
    /// The row of the trace.
    track: String,
    name: String,
    /// Microseconds since the start of the trace.
    begin: f64,
    end: f64,
}

/// An event of the Chrome trace format: a span (`X`).
#[derive(Serialize)]
struct Event<'a> {
    name: &'a str,
    ph: &'a str,
    ts: f64,
    dur: f64,
    pid: usize,
    tid: &'a str,
}

/// The row of the thread that computes.
pub const COMPUTE: &str = "compute";
/// How the names of spans begin in which the thread that computes waits for others.
const WAIT: &str = "wait for ";

impl Default for Trace {
    fn default() -> Trace {
        Trace { start: Instant::now(), spans: Arc::default() }
    }
}

impl Trace {
    /// Runs `work` and records it.
    pub fn record<T>(&self, track: &str, name: &str, work: impl FnOnce() -> T) -> T {
        let begin = self.microseconds();
        let result = work();
        let span = Span { track: track.to_string(), name: name.to_string(), begin, end: self.microseconds() };
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).push(span);
        result
    }

    /// Runs `wait`, in which the thread that computes waits for `name`, and records it.
    pub fn record_wait<T>(&self, name: &str, wait: impl FnOnce() -> T) -> T {
        self.record(COMPUTE, &format!("{WAIT}{name}"), wait)
    }

    fn microseconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64() * 1e6
    }

    fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the seconds of communication on this rank, and the seconds in which computing waited
    /// for it.
    pub fn communication(&self) -> (f64, f64) {
        let spans = self.spans();
        let seconds = |wanted: &dyn Fn(&&Span) -> bool| -> f64 {
            spans.iter().filter(wanted).map(|span| (span.end - span.begin) * 1e-6).sum()
        };
        (seconds(&|span| span.track != COMPUTE), seconds(&|span| span.name.starts_with(WAIT)))
    }

    /// Returns the records of all ranks as a Chrome trace on the first rank, and nothing on the others.
    /// Each rank is a process of the trace. Their clocks start when their traces do.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn of_all_ranks(&self, all: &Lane) -> Result<Option<String>> {
        let own = serde_json::to_vec(&self.spans())?;
        let Some(parts) = all.run("traces", move |comm| comm.gather(&own))? else { return Ok(None) };
        let parts: Vec<Vec<Span>> =
            parts.iter().map(|part| serde_json::from_slice(part)).collect::<Result<_, _>>()?;
        let event = |(pid, span): (usize, &Span)| {
            serde_json::to_value(Event {
                name: &span.name,
                ph: "X",
                ts: span.begin,
                dur: span.end - span.begin,
                pid,
                tid: &span.track,
            })
        };
        let events =
            parts.iter().enumerate().flat_map(|(pid, spans)| spans.iter().map(move |span| (pid, span)));
        let events: Vec<_> = events.map(event).collect::<Result<_, _>>()?;
        Ok(Some(serde_json::json!({ "traceEvents": events, "displayTimeUnit": "ms" }).to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    use super::super::comm::Solo;
    use super::*;

    #[test]
    fn trace_has_the_spans_of_every_rank_and_what_was_waited_for() {
        let trace = Trace::default();
        trace.record("shards", "gather", || sleep(Duration::from_millis(3)));
        assert_eq!(trace.record_wait("gather", || 7), 7);
        let (communicated, waited) = trace.communication();
        assert!((0.003..1.0).contains(&communicated) && waited < communicated, "{communicated} {waited}");
        let json = trace.of_all_ranks(&Lane::new(Arc::new(Solo))).unwrap().unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let event = &json["traceEvents"][0];
        assert_eq!((&event["name"], &event["ph"], &event["pid"]), (&"gather".into(), &"X".into(), &0.into()));
        assert!(event["dur"].as_f64().unwrap() >= 3000.0 && event["tid"] == "shards");
    }
}
