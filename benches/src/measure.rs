//! Measures candidates in turn, so that a machine whose speed drifts affects all of them alike.

use std::sync::Mutex;
use std::time::{Duration, Instant};

const ROUNDS: usize = 15;

/// A candidate of a comparison: runs a number of operations, and returns how long they took.
pub(crate) struct Candidate<'a> {
    name: &'static str,
    run: Box<dyn FnMut(u32) -> Duration + 'a>,
}

/// Returns a candidate that runs one operation in a loop.
pub(crate) fn candidate<'a>(name: &'static str, mut operation: impl FnMut() + 'a) -> Candidate<'a> {
    timed(name, move |count| {
        let started = Instant::now();
        for _ in 0..count {
            operation();
        }
        started.elapsed()
    })
}

/// Returns a candidate that measures itself.
pub(crate) fn timed<'a>(name: &'static str, run: impl FnMut(u32) -> Duration + 'a) -> Candidate<'a> {
    Candidate { name, run: Box::new(run) }
}

/// The time of the first candidate of a comparison, divided by the time of another one.
pub(crate) struct Ratio {
    pub(crate) title: String,
    pub(crate) peer: &'static str,
    pub(crate) ratio: f64,
}

static RATIOS: Mutex<Vec<Ratio>> = Mutex::new(Vec::new());

/// Returns the ratios of all comparisons so far, in order, and clears the list.
pub(crate) fn ratios() -> Vec<Ratio> {
    std::mem::take(&mut RATIOS.lock().expect("no holder panics"))
}

/// Runs the candidates in turn. Prints the median time of an operation of each, and the median ratio of the first one
/// to each of the others within a round.
pub(crate) fn compare(title: &str, count: u32, mut candidates: Vec<Candidate<'_>>) {
    let mut rounds: Vec<Vec<f64>> = Vec::with_capacity(ROUNDS);
    for candidate in &mut candidates {
        (candidate.run)(count);
    }
    for _ in 0..ROUNDS {
        rounds.push(
            candidates.iter_mut().map(|candidate| nanoseconds((candidate.run)(count)) / f64::from(count)).collect(),
        );
    }
    println!("\n{title}");
    let median_of = |candidate: usize| median(rounds.iter().map(|round| round[candidate]));
    print!("  {:34} {:>12}", candidates[0].name, show(median_of(0)));
    for (peer, candidate) in candidates.iter().enumerate().skip(1) {
        let ratio = median(rounds.iter().map(|round| round[0] / round[peer]));
        print!("   {ratio:.2} x {}", candidate.name);
        RATIOS.lock().expect("no holder panics").push(Ratio { title: title.to_owned(), peer: candidate.name, ratio });
    }
    println!();
    for (index, candidate) in candidates.iter().enumerate().skip(1) {
        println!("  {:34} {:>12}", candidate.name, show(median_of(index)));
    }
}

fn nanoseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn show(nanoseconds: f64) -> String {
    if nanoseconds < 1e3 { format!("{nanoseconds:.2} ns") } else { format!("{:.2} us", nanoseconds / 1e3) }
}
