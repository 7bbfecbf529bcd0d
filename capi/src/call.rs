//! Calls that may wait: until they are done, or in slices of 100 ms.

use std::any::Any;
use std::time::Duration;

use prefork_cache::{Result, Resumable};

use crate::errors::Failure;
use crate::status::pfc_status;

/// The duration after which a call in slices returns.
pub(crate) const SLICE: Duration = Duration::from_millis(100);

/// A call that is not finished.
///
/// Every function with a last argument `pfc_call **call` may wait: for at most the timeouts of the cache's URL and,
/// in a fetch, for the load of another caller. With a null pointer, it returns when it is finished; signal handlers
/// run in the meantime as usual. With a pointer to a `pfc_call *` that is null, it returns after at most about 100
/// ms: with PFC_AGAIN and the `pfc_call *` set if it is not finished. Handle signals, let other threads of the
/// language run, and call the same function again with the same arguments: the exchange continues, and nothing is
/// sent twice. When it returns any other status, the `pfc_call *` is null again. (The system's lookup of a host name
/// cannot be interrupted like this: write the address in numbers if that matters.)
///
/// Only one thread at a time may use a call, but any thread may. The first call copies keys, values and other
/// arguments: later ones do not read them, but set their results. End a call that is no longer wanted with
/// pfc_call_cancel(); it may or may not have taken effect. A child of the process that began it gets PFC_FORKED, and
/// has to begin again.
pub struct pfc_call {
    verb: &'static str,
    /// A [`Resumable`].
    operation: Box<dyn Any + Send>,
}

/// Ends a call that is not finished, and frees it. On any thread, also in a child of the process that began it. A null
/// pointer is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_call_cancel(call: *mut pfc_call) {
    crate::entry::entry(|| {
        if !call.is_null() {
            // SAFETY: `run_slice` allocated it and gave it to the caller, who gives it back here, once.
            drop(unsafe { Box::from_raw(call) });
        }
        Ok(pfc_status::PFC_OK)
    });
}

/// Begins a call in slices or continues it, for one slice. Returns `None` if it is not finished.
pub(crate) unsafe fn run_slice<T: 'static>(
    call: &mut *mut pfc_call,
    verb: &'static str,
    begin: impl FnOnce() -> Result<Resumable<'static, T>, Failure>,
) -> Result<Option<T>, Failure> {
    let mut unfinished = if call.is_null() {
        Box::new(pfc_call { verb, operation: Box::new(begin()?) })
    } else {
        // SAFETY: an earlier call set it, below, and it is cleared as soon as it is taken.
        unsafe { Box::from_raw(*call) }
    };
    *call = std::ptr::null_mut();
    let operation = unfinished.operation.downcast_mut::<Resumable<'static, T>>().filter(|_| unfinished.verb == verb);
    let Some(operation) = operation else {
        let message = format!("{verb} cannot continue a call of {}", unfinished.verb);
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

/// Makes a call with a cache and a key, which are borrowed or, in slices, owned. `None` if it is not finished.
macro_rules! call {
    ($call:expr, $verb:literal, $cache:ident, $key:ident => $operation:expr) => {
        // SAFETY: null, or the caller's pointer to the `pfc_call *` of an earlier call, or to null.
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
                unsafe { $crate::call::run_slice(call, $verb, begin) }?
            }
        }
    };
}

pub(crate) use call;
