//! Memory: the entries of a store, including its garbage, stay within the bound, whatever the size of the values and
//! the number of threads that write them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use prefork_cache::Cache;
use prefork_cache::stores::MemoryStore;

use crate::callers::HOUR;
use crate::harness::{Scenario, count, is_stress, scenario};
use support::allocator::{live, take_peak};
use support::wait::{SetOnDrop, until};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("with_1_writing_thread", || with_writing_threads(1)),
        scenario("with_8_writing_threads", || with_writing_threads(8)),
        scenario("if_it_is_in_entries", if_it_is_in_entries),
        scenario("beside_idle_threads", beside_idle_threads),
        scenario("for_parts_of_larger_buffers", for_parts_of_larger_buffers),
        scenario("when_a_reader_removes_expired_entries", when_a_reader_removes_expired_entries),
    ]
}

const MIB: usize = 1 << 20;

/// The memory of a store and its threads besides the entries.
const OVERHEAD: usize = 256 << 10;

fn with_writing_threads(threads: usize) {
    for bound in if is_stress() { vec![16 * MIB, 64 * MIB] } else { vec![16 * MIB] } {
        for size in [1_000, 30_000, 300_000, 5_000_000] {
            let (store, cache) = store_of(bound);
            let before = start_measuring();
            let writes = (count(3, 20) * bound / size / threads).max(count(20, 200));
            write(&cache, threads, writes, bound / size * 2, size);
            let allowed = bound * 5 / 4 + threads * size + OVERHEAD;
            let (peak, idle) = (take_peak() - before, live() - before);
            println!(
                "{threads} threads, {size} bytes, a bound of {bound}: peak {peak} ({:.2}), idle {idle} ({:.2}), {} of {} refused",
                peak as f64 / bound as f64,
                idle as f64 / bound as f64,
                store.usage().refused,
                writes * threads
            );
            assert!(
                peak <= allowed,
                "{threads} threads, {size} bytes: {peak} bytes were in use, allowed are {allowed}"
            );
            assert!(
                idle <= bound * 5 / 4 + OVERHEAD,
                "{threads} threads, {size} bytes: {idle} bytes are in use while idle"
            );
            assert!(idle >= bound / 4, "{threads} threads, {size} bytes: only {idle} bytes are kept");
        }
    }
}

/// A bound in entries includes the garbage too.
fn if_it_is_in_entries() {
    const SIZE: usize = MIB;
    let cache = Cache::builder(MemoryStore::builder().max_entries(8).build()).build();
    let before = start_measuring();
    write(&cache, 4, count(100, 1_000), 30, SIZE);
    let peak = take_peak() - before;
    println!("8 entries of {SIZE} bytes: peak {peak}");
    assert!(peak <= (10 + 1 + 2 * 4) * SIZE + OVERHEAD, "8 entries of {SIZE} bytes took {peak}");
}

/// No other thread can free the garbage of an idle thread, so the thread must have freed it itself.
fn beside_idle_threads() {
    const SIZE: usize = 1_000_000;
    let (bound, threads) = (16 * MIB, 8);
    let (_, cache) = store_of(bound);
    let before = start_measuring();
    let (idle, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let _done = SetOnDrop(&done);
        for thread in 0..threads {
            let (cache, idle, done) = (&cache, &idle, &done);
            scope.spawn(move || {
                for number in 0..40 {
                    set(cache, thread * 1_000 + number, SIZE);
                    set(cache, thread * 1_000, SIZE);
                    if number % 3 == 0 {
                        cache.blocking().delete(&key(thread * 1_000 + number)).expect("memory does not fail");
                    }
                }
                idle.fetch_add(1, Ordering::SeqCst);
                while !done.load(Ordering::SeqCst) {
                    thread::park_timeout(std::time::Duration::from_millis(1));
                }
            });
        }
        until("the threads are idle", || idle.load(Ordering::SeqCst) == threads);
        take_peak();
        for number in 0..count(100, 1_000) {
            set(&cache, 100_000 + number, SIZE);
        }
        let peak = take_peak() - before;
        println!("beside {threads} idle threads: peak {peak}");
        assert!(peak <= bound * 5 / 4 + SIZE + OVERHEAD, "{peak} bytes were in use");
        let kept = (0..100_000 + count(100, 1_000)).filter(|number| is_there(&cache, *number)).count();
        assert!(kept * SIZE >= bound / 2, "only {kept} values are kept");
    });
}

/// A value from a far store is a part of the buffer that its reply was read into.
fn for_parts_of_larger_buffers() {
    let bound = 4 * MIB;
    let (_, cache) = store_of(bound);
    let before = start_measuring();
    for number in 0..2_000 {
        let buffer = bytes::Bytes::from(vec![b'x'; 100_000]);
        cache.blocking().set_raw(&key(number), buffer.slice(500..1_500), HOUR).expect("memory does not fail");
    }
    let (peak, idle) = (take_peak() - before, live() - before);
    println!("parts of larger buffers: peak {peak}, idle {idle}");
    assert!(peak <= bound * 5 / 4 + 100_000 + OVERHEAD, "{peak} bytes were in use");
}

/// A thread that only reads removes expired entries, and then is idle: their memory must be free.
fn when_a_reader_removes_expired_entries() {
    const SIZE: usize = 1_000_000;
    let bound = 16 * MIB;
    let (_, cache) = store_of(bound);
    let before = start_measuring();
    let (read, done) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let _done = SetOnDrop(&done);
        for number in 0..14 {
            let value = vec![b'x'; SIZE];
            let soon = std::time::Duration::from_millis(50);
            cache.blocking().set_raw(&key(number), value, soon).expect("memory does not fail");
        }
        until("the values have expired", || (0..14).all(|number| !is_there(&cache, number)));
        scope.spawn(|| {
            until("the expired entries are freed", || {
                is_there(&cache, 0);
                live() - before < MIB
            });
            read.store(true, Ordering::SeqCst);
            while !done.load(Ordering::SeqCst) {
                thread::park_timeout(std::time::Duration::from_millis(1));
            }
        });
        until("the reader is idle", || read.load(Ordering::SeqCst));
    });
}

fn store_of(bound: usize) -> (Arc<MemoryStore>, Cache) {
    let store = Arc::new(MemoryStore::builder().max_bytes(bound as u64).build());
    (Arc::clone(&store), Cache::builder(store).build())
}

/// Starts measuring the peak, and returns the number of bytes that are allocated now.
fn start_measuring() -> usize {
    take_peak();
    live()
}

fn write(cache: &Cache, threads: usize, writes: usize, keys: usize, size: usize) {
    let together = Barrier::new(threads);
    thread::scope(|scope| {
        for thread in 0..threads {
            let together = &together;
            scope.spawn(move || {
                together.wait();
                for number in (thread..).step_by(threads).take(writes) {
                    set(cache, number * 7 % keys, size);
                    is_there(cache, number * 3 % keys);
                }
            });
        }
    });
}

fn set(cache: &Cache, number: usize, size: usize) {
    cache.blocking().set_raw(&key(number), vec![b'x'; size], HOUR).expect("memory does not fail");
}

fn is_there(cache: &Cache, number: usize) -> bool {
    cache.blocking().get_raw(&key(number)).expect("memory does not fail").is_some()
}

fn key(number: usize) -> String {
    format!("key {number}")
}
