//! A value that each process builds for itself.
//!
//! A [`ProcessLocal`] points to a node that records the generation for which its value was built. A process that finds
//! a node of another generation replaces it by its own node, and leaks the inherited one: dropping it could wait for
//! locks that are held forever, wake runtimes that no longer exist, or send a goodbye on connections of another
//! process. The pages are shared with the parent and cost nothing until they are written.
//!
//! # Orderings
//!
//! The pointer is published with release and read with acquire, and so is the flag that a node's value is built. A
//! build runs under the lock of its node. The lock belongs to a generation, like everything in the node, so no thread
//! that vanished in a fork can be holding it. The generation is set before the value is built, the flag after.

use std::cell::UnsafeCell;
use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use super::generation::generation;
use super::thread_token;
use crate::sync::Lock;

/// A value that each process builds for itself, at its first use there.
///
/// It works like [`OnceLock`](std::sync::OnceLock), but a forked child does not see its parent's value: it builds its
/// own. Use it for things that must not be shared across a fork: connection pools, HTTP clients, random number
/// generators, files with a position of their own. Unlike with a `OnceLock`, a build that another thread was running at
/// the fork does not hang the child.
///
/// The parent's value is not dropped in the child but leaked. Its memory is shared with the parent until one of them
/// writes to it. Within one process a value is never replaced.
///
/// ```
/// use prefork_cache::lifecycle::ProcessLocal;
/// use std::collections::hash_map::RandomState;
/// use std::hash::BuildHasher;
///
/// /// A seed that no two processes share, however they were forked.
/// static SEED: ProcessLocal<u64> = ProcessLocal::new();
///
/// fn seed() -> u64 {
///     *SEED.get_or_init(|| RandomState::new().hash_one(std::process::id()))
/// }
///
/// assert_eq!(seed(), seed());
/// ```
pub struct ProcessLocal<T> {
    node: AtomicPtr<Node<T>>,
    owns: PhantomData<Node<T>>,
}

struct Node<T> {
    generation: u64,
    /// The node that this one replaced: null, or leaked.
    inherited: *const Node<T>,
    building: Lock<()>,
    /// The token of the thread that is building, or 0.
    builder: AtomicUsize,
    built: AtomicBool,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value is written once, under the node's lock, before `built` is stored with release, and only read (by
// shared reference) after `built` was loaded with acquire. Threads share it, hence `T: Sync`; the last owner drops a
// value that another thread built, hence `T: Send`.
unsafe impl<T: Send + Sync> Sync for ProcessLocal<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for ProcessLocal<T> {}

impl<T> ProcessLocal<T> {
    /// Returns a `ProcessLocal` without a value in any process.
    ///
    /// ```
    /// use prefork_cache::lifecycle::ProcessLocal;
    ///
    /// static POOL: ProcessLocal<Vec<u8>> = ProcessLocal::new();
    /// ```
    pub const fn new() -> ProcessLocal<T> {
        ProcessLocal { node: AtomicPtr::new(ptr::null_mut()), owns: PhantomData }
    }

    /// Returns this process's value, if it has built one.
    pub(crate) fn get(&self) -> Option<&T> {
        let node = self.node.load(Ordering::Acquire);
        // SAFETY: nodes in the pointer are freed only by `drop`, which has the only reference.
        let node = unsafe { node.as_ref() }?;
        if node.generation == generation() { node.get() } else { None }
    }
}

impl<T: Send + Sync> ProcessLocal<T> {
    /// Returns this process's value. Builds it at the first use in this process; other threads wait for the build.
    ///
    /// If `build` forks, the child keeps the value that the build returns there.
    ///
    /// # Panics
    ///
    /// If `build` accesses the value that it is building. If `build` panics, the next caller tries again.
    ///
    /// ```
    /// use prefork_cache::lifecycle::ProcessLocal;
    ///
    /// static PID: ProcessLocal<u32> = ProcessLocal::new();
    /// assert_eq!(*PID.get_or_init(std::process::id), std::process::id());
    /// ```
    pub fn get_or_init(&self, build: impl FnOnce() -> T) -> &T {
        match self.get_or_try_init(|| Ok::<T, Infallible>(build())) {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }

    /// Returns this process's value. Builds it at the first use in this process.
    ///
    /// # Errors
    ///
    /// The error of `build`. Nothing is stored then, and the next caller tries again.
    ///
    /// # Panics
    ///
    /// As [`get_or_init`](ProcessLocal::get_or_init).
    ///
    /// ```
    /// use prefork_cache::lifecycle::ProcessLocal;
    /// use std::fs::File;
    ///
    /// // A descriptor, and a position in the file, of each process's own.
    /// static WORDS: ProcessLocal<File> = ProcessLocal::new();
    /// let words = WORDS.get_or_try_init(|| File::open("/usr/share/dict/no-such-words"));
    /// assert!(words.is_err());
    /// ```
    pub fn get_or_try_init<E>(&self, build: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        if let Some(value) = self.get() {
            return Ok(value);
        }
        self.build(|_| build())
    }

    /// [`get_or_init`](ProcessLocal::get_or_init) for a build that gets the inherited value, if there is one. The build
    /// has to know whether that value came intact through the fork.
    pub(crate) fn get_or_inherit(&self, build: impl FnOnce(Option<&T>) -> T) -> &T {
        if let Some(value) = self.get() {
            return value;
        }
        match self.build(|inherited| Ok::<T, Infallible>(build(inherited))) {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }

    #[cold]
    fn build<E>(&self, build: impl FnOnce(Option<&T>) -> Result<T, E>) -> Result<&T, E> {
        let node = self.own_node();
        assert!(
            node.builder.load(Ordering::Relaxed) != thread_token(),
            "the build of a ProcessLocal asked for the value that it is building"
        );
        let guard = node.building.lock();
        if let Some(value) = node.get() {
            return Ok(value);
        }
        let builder = Builder::sign(&node.builder);
        let value = build(node.inherited_value())?;
        drop(builder);
        if node.generation != generation() {
            // The build has forked, and this is the child: the node is the parent's.
            drop(guard);
            return Ok(self.adopt(value));
        }
        Ok(node.fill(&guard, value))
    }

    /// Stores a value that was built in the parent's node, unless there is one.
    fn adopt(&self, value: T) -> &T {
        let node = self.own_node();
        let guard = node.building.lock();
        match node.get() {
            Some(built) => built,
            None => node.fill(&guard, value),
        }
    }

    /// Returns the node of this generation, which is created if necessary.
    fn own_node(&self) -> &Node<T> {
        let generation = generation();
        let mut known = self.node.load(Ordering::Acquire);
        loop {
            // SAFETY: as in `get`.
            match unsafe { known.as_ref() } {
                Some(node) if node.generation == generation => return node,
                _ => {}
            }
            let fresh = Box::into_raw(Box::new(Node::new(generation, known)));
            match self.node.compare_exchange(known, fresh, Ordering::AcqRel, Ordering::Acquire) {
                // SAFETY: as in `get`. The inherited node, if any, is leaked.
                Ok(_) => return unsafe { &*fresh },
                Err(winner) => {
                    // SAFETY: allocated above and never published.
                    drop(unsafe { Box::from_raw(fresh) });
                    known = winner;
                }
            }
        }
    }
}

impl<T> Node<T> {
    fn new(generation: u64, inherited: *const Node<T>) -> Node<T> {
        Node {
            generation,
            inherited,
            building: Lock::new("process-local", ()),
            builder: AtomicUsize::new(0),
            built: AtomicBool::new(false),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// Stores the value. Must be called under the node's lock, once.
    fn fill(&self, _building: &MutexGuard<'_, ()>, value: T) -> &T {
        // SAFETY: nothing else writes while the lock is held, and nothing reads before `built` is set.
        let value = unsafe { (*self.value.get()).write(value) };
        self.built.store(true, Ordering::Release);
        value
    }

    /// Returns the value of the nearest ancestor that built one.
    fn inherited_value(&self) -> Option<&T> {
        let mut inherited = self.inherited;
        // SAFETY: a node that was replaced is leaked, so it is never freed.
        while let Some(node) = unsafe { inherited.as_ref() } {
            if let Some(value) = node.get() {
                return Some(value);
            }
            inherited = node.inherited;
        }
        None
    }

    #[inline]
    fn get(&self) -> Option<&T> {
        // SAFETY: `built` is stored with release after the value was written, which happens once.
        self.built.load(Ordering::Acquire).then(|| unsafe { (*self.value.get()).assume_init_ref() })
    }
}

/// Records this thread's token as the builder's during a build, even if the build panics.
struct Builder<'a>(&'a AtomicUsize);

impl<'a> Builder<'a> {
    fn sign(builder: &'a AtomicUsize) -> Builder<'a> {
        builder.store(thread_token(), Ordering::Relaxed);
        Builder(builder)
    }
}

impl Drop for Builder<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl<T> Drop for ProcessLocal<T> {
    fn drop(&mut self) {
        let node = *self.node.get_mut();
        // SAFETY: as in `get`; this is the only reference.
        let of_this_process = unsafe { node.as_ref() }.is_some_and(|node| node.generation == generation());
        if of_this_process {
            // SAFETY: made by `Box::into_raw`, and this is the only reference.
            let mut node = unsafe { Box::from_raw(node) };
            if *node.built.get_mut() {
                // SAFETY: written, and dropped only here.
                unsafe { node.value.get_mut().assume_init_drop() };
            }
        }
    }
}

impl<T> Default for ProcessLocal<T> {
    fn default() -> ProcessLocal<T> {
        ProcessLocal::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for ProcessLocal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProcessLocal").field(&self.get()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::ProcessLocal;

    #[test]
    fn a_failed_build_is_tried_again() {
        let local = ProcessLocal::new();
        assert_eq!(local.get_or_try_init(|| Err::<u8, _>("no")), Err("no"));
        assert_eq!(local.get_or_try_init(|| Ok::<u8, &str>(1)), Ok(&1));
        assert_eq!(local.get_or_init(|| 2), &1);
    }

    #[test]
    fn a_panicked_build_is_tried_again() {
        let local = ProcessLocal::<u8>::new();
        let panicked = catch_unwind(AssertUnwindSafe(|| local.get_or_init(|| panic!("as planned"))));
        assert!(panicked.is_err());
        assert_eq!(local.get_or_init(|| 1), &1);
    }

    #[test]
    #[should_panic(expected = "asked for the value that it is building")]
    fn a_build_that_accesses_its_own_value_panics() {
        let local = ProcessLocal::<u8>::new();
        local.get_or_init(|| *local.get_or_init(|| 1));
    }

    #[test]
    fn threads_build_once() {
        let local = ProcessLocal::new();
        let builds = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    local.get_or_init(|| builds.fetch_add(1, std::sync::atomic::Ordering::SeqCst));
                });
            }
        });
        assert_eq!(builds.into_inner(), 1);
    }

    #[test]
    fn the_value_is_dropped_with_its_process_local() {
        let value = std::sync::Arc::new(());
        let local = ProcessLocal::new();
        local.get_or_init(|| value.clone());
        assert_eq!(std::sync::Arc::strong_count(&value), 2);
        drop(local);
        assert_eq!(std::sync::Arc::strong_count(&value), 1);
    }
}
