//! Calls that may wait: at once, or in slices of 100 ms.

use std::any::Any;
use std::time::Duration;

use prefork_cache::{Result, Resumable};

use crate::entry::Failure;
use crate::status::pfc_status;

/// After what time a call in slices comes back.
pub(crate) const SLICE: Duration = Duration::from_millis(100);

/// A call that is not done.
///
/// Every function with a last argument `pfc_call **call` may wait, for at most the timeouts of the cache's URL, and a
/// fetch for the load of another caller. With a null pointer there, it comes back when it is done, and signal handlers
/// run meanwhile as they do. With a pointer to a `pfc_call *` that is null, it comes back after about 100 ms at the
/// latest: with PFC_AGAIN if it is not done, and the `pfc_call *` set. Serve signals, let other threads of the language
/// run, and call the same function again with the same arguments: the exchange that is under way is gone on with, and
/// nothing is sent twice. When it returns anything else the `pfc_call *` is null again. (The lookup of a host's name by
/// the system cannot be left: write the address in numbers where that matters.)
///
/// A call is one thread's at a time, and any thread's. Keys, values and other arguments are copied by the first call:
/// later ones do not read them, but write what they return. A call that is not wanted any more is ended by
/// pfc_call_cancel(); it has taken effect or not. A child of the process that began it gets PFC_FORKED: it begins
/// again.
pub struct pfc_call {
    verb: &'static str,
    /// A [`Resumable`].
    operation: Box<dyn Any + Send>,
}

/// Ends a call that is not done, and frees it. On any thread; in a child of the process that began it too. Takes a null
/// pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_call_cancel(call: *mut pfc_call) {
    crate::entry::entry(|| {
        if !call.is_null() {
            // SAFETY: made by `in_slices`, which hands it out, and ended here.
            drop(unsafe { Box::from_raw(call) });
        }
        Ok(pfc_status::PFC_OK)
    });
}

/// Begins a call in slices, or goes on with it. Returns `None` if it is not done.
pub(crate) unsafe fn in_slices<T: 'static>(
    call: &mut *mut pfc_call,
    verb: &'static str,
    begin: impl FnOnce() -> Result<Resumable<'static, T>, Failure>,
) -> Result<Option<T>, Failure> {
    let mut unfinished = if call.is_null() {
        Box::new(pfc_call { verb, operation: Box::new(begin()?) })
    } else {
        // SAFETY: set by a call before, below, and cleared where it is taken.
        unsafe { Box::from_raw(*call) }
    };
    *call = std::ptr::null_mut();
    let operation = unfinished.operation.downcast_mut::<Resumable<'static, T>>().filter(|_| unfinished.verb == verb);
    let Some(operation) = operation else {
        let message = format!("a {verb} cannot go on with a call of {}", unfinished.verb);
        *call = Box::into_raw(unfinished);
        return Err(Failure::new(pfc_status::PFC_BAD_ARGUMENT, message));
    };
    match operation.run_for(SLICE) {
        Some(outcome) => Ok(Some(outcome?)),
        None => {
            *call = Box::into_raw(unfinished);
            Ok(None)
        }
    }
}

/// Makes a call with a cache and a key, which are borrowed or, in slices, kept. `None` if it is not done.
macro_rules! call {
    ($call:expr, $verb:literal, $cache:ident, $key:ident => $operation:expr) => {
        // SAFETY: null, or a pointer of the caller's to what it was given by an earlier call, or to null.
        match unsafe { $call.as_mut() } {
            None => Some($cache.blocking().run($operation)),
            Some(call) => {
                let begin = || {
                    let (cache, key) = ($cache.clone(), $key.to_owned());
                    Ok(prefork_cache::Resumable::new(async move {
                        let ($cache, $key) = (&cache, &*key);
                        $operation.await
                    }))
                };
                // SAFETY: as above.
                unsafe { $crate::call::in_slices(call, $verb, begin) }?
            }
        }
    };
}

pub(crate) use call;
