//! Two or more ways to do the same, taken in turn, so that a machine whose speed drifts is fair to all of them.

use std::sync::Mutex;
use std::time::{Duration, Instant};

const ROUNDS: usize = 15;

/// One way to do it: runs so many operations, and says how long they took.
pub(crate) struct Way<'a> {
    name: &'static str,
    run: Box<dyn FnMut(u32) -> Duration + 'a>,
}

/// A way that is a plain loop over one operation.
pub(crate) fn way<'a>(name: &'static str, mut operation: impl FnMut() + 'a) -> Way<'a> {
    timed(name, move |count| {
        let started = Instant::now();
        for _ in 0..count {
            operation();
        }
        started.elapsed()
    })
}

/// A way that measures itself.
pub(crate) fn timed<'a>(name: &'static str, run: impl FnMut(u32) -> Duration + 'a) -> Way<'a> {
    Way { name, run: Box::new(run) }
}

/// The time of the first way of a comparison, as a part of that of another one.
pub(crate) struct Ratio {
    pub(crate) title: String,
    pub(crate) peer: &'static str,
    pub(crate) ratio: f64,
}

static RATIOS: Mutex<Vec<Ratio>> = Mutex::new(Vec::new());

/// The ratios of all comparisons so far, in their order.
pub(crate) fn ratios() -> Vec<Ratio> {
    std::mem::take(&mut RATIOS.lock().expect("nobody panics"))
}

/// Runs the ways in turn and prints the median time of an operation of each, and the median of its ratio to each of the
/// others within a round.
pub(crate) fn compare(title: &str, count: u32, mut ways: Vec<Way<'_>>) {
    let mut rounds: Vec<Vec<f64>> = Vec::with_capacity(ROUNDS);
    for way in &mut ways {
        (way.run)(count);
    }
    for _ in 0..ROUNDS {
        rounds.push(ways.iter_mut().map(|way| nanoseconds((way.run)(count)) / f64::from(count)).collect());
    }
    println!("\n{title}");
    let median_of = |way: usize| median(rounds.iter().map(|round| round[way]));
    print!("  {:34} {:>12}", ways[0].name, show(median_of(0)));
    for (peer, way) in ways.iter().enumerate().skip(1) {
        let ratio = median(rounds.iter().map(|round| round[0] / round[peer]));
        print!("   {ratio:.2} x {}", way.name);
        RATIOS.lock().expect("nobody panics").push(Ratio { title: title.to_owned(), peer: way.name, ratio });
    }
    println!();
    for (index, way) in ways.iter().enumerate().skip(1) {
        println!("  {:34} {:>12}", way.name, show(median_of(index)));
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
