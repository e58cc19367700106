//! Gives tasks to the resources of a device, and measures how busy these are.

use serde::Serialize;

/// The time of an update, and what it was spent on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Simulated {
    /// Seconds per update.
    pub seconds: f64,
    /// The part of `seconds` in which a device computes the forward pass, the backward pass and
    /// AdamW. PowerSGD's computation does not count.
    pub efficiency: f64,
    /// Seconds in which each resource was busy.
    pub busy: Busy,
    /// Seconds in which nothing was computed, by what computation waited for.
    pub waited: Waits,
}

/// Seconds in which each resource of a device was busy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Busy {
    /// The processor, also with PowerSGD.
    pub compute: f64,
    /// The links within the machine.
    pub inside: f64,
    /// The link between machines.
    pub between: f64,
}

/// Seconds in which computation waited for each kind of communication.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Waits {
    /// Gathering weights within the machine.
    pub gather: f64,
    /// Summing gradients within the machine.
    pub reduce_scatter: f64,
    /// Summing gradients over machines.
    pub all_reduce: f64,
}

/// The kind of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Train,
    Compress,
    Gather,
    ReduceScatter,
    AllReduce,
}

impl Work {
    /// Returns the index of the resource that does it: processor, links inside, link between.
    fn resource(self) -> usize {
        match self {
            Work::Train | Work::Compress => 0,
            Work::Gather | Work::ReduceScatter => 1,
            Work::AllReduce => 2,
        }
    }
}

/// A task, its duration, and the indices of the tasks that must end before it starts.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub work: Work,
    pub seconds: f64,
    pub after: Vec<usize>,
}

/// When a task runs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Span {
    start: f64,
    end: f64,
    /// The task whose end this one waited for: one before it in the list, or one of its resource.
    cause: Option<usize>,
}

/// Returns when each task runs. A resource does the task that was ready first; of several, the one
/// that was listed first. Tasks only wait for tasks before them in the list.
fn schedule(tasks: &[Task]) -> Vec<Span> {
    let mut spans = vec![Span::default(); tasks.len()];
    let mut followers = vec![Vec::new(); tasks.len()];
    let mut open: Vec<usize> = tasks.iter().map(|task| task.after.len()).collect();
    for (i, task) in tasks.iter().enumerate() {
        task.after.iter().for_each(|&before| followers[before].push(i));
    }
    let mut ready: Vec<usize> = (0..tasks.len()).filter(|&i| open[i] == 0).collect();
    // The latest task of each resource.
    let mut latest: [Option<usize>; 3] = [None; 3];
    loop {
        let next = (0..ready.len()).map(|place| (place, ready[place])).min_by(|&(_, a), &(_, b)| {
            let [start_a, start_b] = [a, b].map(|i| {
                let busy_until = latest[tasks[i].work.resource()].map_or(0.0, |own| spans[own].end);
                spans[i].start.max(busy_until)
            });
            start_a.total_cmp(&start_b).then(spans[a].start.total_cmp(&spans[b].start)).then(a.cmp(&b))
        });
        let Some((place, i)) = next else { return spans };
        ready.swap_remove(place);
        let own = latest[tasks[i].work.resource()].replace(i);
        spans[i] = spans[i].after(own, &spans);
        spans[i].end = spans[i].start + tasks[i].seconds;
        for &follower in &followers[i] {
            spans[follower] = spans[follower].after(Some(i), &spans);
            open[follower] -= 1;
            if open[follower] == 0 {
                ready.push(follower);
            }
        }
    }
}

impl Span {
    /// Starts no earlier than the task `before` ends.
    fn after(self, before: Option<usize>, spans: &[Span]) -> Span {
        match before {
            Some(i) if spans[i].end > self.start => Span { start: spans[i].end, cause: before, ..self },
            _ => self,
        }
    }
}

impl Simulated {
    /// Measures the schedule of `tasks`.
    pub(super) fn of(tasks: &[Task]) -> Simulated {
        let spans = schedule(tasks);
        let seconds = spans.iter().map(|span| span.end).fold(0.0, f64::max);
        let total = |wanted: &dyn Fn(Work) -> bool| -> f64 {
            tasks.iter().filter(|task| wanted(task.work)).fold(0.0, |sum, task| sum + task.seconds)
        };
        let [compute, inside, between] = [0, 1, 2].map(|resource| total(&|work| work.resource() == resource));
        let training = total(&|work| work == Work::Train);
        Simulated {
            seconds,
            efficiency: if seconds > 0.0 { training / seconds } else { 1.0 },
            busy: Busy { compute, inside, between },
            waited: waits(tasks, &spans),
        }
    }
}

/// Attributes each pause of the processor to the communication that it waited for, one after another.
fn waits(tasks: &[Task], spans: &[Span]) -> Waits {
    let mut computed: Vec<usize> = (0..tasks.len()).filter(|&i| tasks[i].work.resource() == 0).collect();
    computed.sort_by(|&a, &b| spans[a].start.total_cmp(&spans[b].start).then(a.cmp(&b)));
    let (mut waits, mut previous) = (Waits::default(), 0.0);
    for i in computed {
        let (mut until, mut cause) = (spans[i].start, spans[i].cause);
        while let Some(task) = cause.filter(|_| until > previous) {
            let from = spans[task].start.max(previous);
            match tasks[task].work {
                Work::Gather => waits.gather += until - from,
                Work::ReduceScatter => waits.reduce_scatter += until - from,
                Work::AllReduce => waits.all_reduce += until - from,
                Work::Train | Work::Compress => {}
            }
            (until, cause) = (from, spans[task].cause);
        }
        previous = spans[i].end;
    }
    waits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(work: Work, seconds: f64, after: &[usize]) -> Task {
        Task { work, seconds, after: after.to_vec() }
    }

    #[test]
    fn tasks_of_one_resource_run_in_the_order_in_which_they_are_ready() {
        let tasks = [
            task(Work::Train, 1.0, &[]),
            task(Work::Gather, 5.0, &[0]),
            task(Work::Train, 2.0, &[0]),
            task(Work::ReduceScatter, 1.0, &[2]), // ready at 3; the link is free at 6
            task(Work::Train, 3.0, &[1]),         // ready at 6
            task(Work::Compress, 1.0, &[2]),      // ready at 3, so before the task above
        ];
        let starts: Vec<f64> = schedule(&tasks).iter().map(|span| span.start).collect();
        assert_eq!(starts, [0.0, 1.0, 1.0, 6.0, 6.0, 3.0]);
        let found = Simulated::of(&tasks);
        assert_eq!((found.seconds, found.efficiency), (9.0, 6.0 / 9.0));
        assert_eq!(found.busy, Busy { compute: 7.0, inside: 6.0, between: 0.0 });
        assert_eq!(found.waited, Waits { gather: 2.0, ..Waits::default() });
    }

    #[test]
    fn communication_hides_behind_computation_if_it_is_shorter() {
        let waited = |seconds: f64| {
            let tasks = [
                task(Work::Train, 1.0, &[]),
                task(Work::AllReduce, seconds, &[0]),
                task(Work::Train, 4.0, &[0]),
                task(Work::Train, 1.0, &[1, 2]),
            ];
            let found = Simulated::of(&tasks);
            (found.seconds, found.waited.all_reduce)
        };
        assert_eq!(waited(3.0), (6.0, 0.0));
        assert_eq!(waited(10.0), (12.0, 6.0));
    }

    /// The last task waits for a gather, which first waited for a reduce-scatter.
    #[test]
    fn pause_is_divided_among_the_messages_that_it_contains() {
        let tasks = [
            task(Work::ReduceScatter, 3.0, &[]),
            task(Work::Train, 1.0, &[]),
            task(Work::Gather, 2.0, &[1]),
            task(Work::Train, 1.0, &[2]),
        ];
        let found = Simulated::of(&tasks);
        assert_eq!(found.waited, Waits { gather: 2.0, reduce_scatter: 2.0, all_reduce: 0.0 });
        assert_eq!(found.seconds, 6.0);
    }

    #[test]
    fn no_tasks_take_no_time() {
        assert_eq!(Simulated::of(&[]).seconds, 0.0);
    }
}
