//! Handles: caches that are open in this process.

use std::ffi::c_char;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};

use prefork_cache::lifecycle::ProcessLocal;
use prefork_cache::{Cache, stores};

use crate::entry::{Failure, entry, null, out, text};
use crate::errors;
use crate::status::pfc_status;

/// A cache that is open, for the life of the process: there is nothing to close. Any thread may use it at any time, and
/// so may the children of the process.
pub struct pfc_cache {
    name: String,
    url: String,
    namespace: Option<String>,
    pub(crate) cache: Cache,
    /// The one that was opened before; both stay.
    next: *const pfc_cache,
}

/// The one that was opened last. A child inherits a list that is whole, whatever its parent's threads were doing.
static OPEN: AtomicPtr<pfc_cache> = AtomicPtr::new(ptr::null_mut());

/// Held while one is opened, by threads of this process.
static OPENING: ProcessLocal<Mutex<()>> = ProcessLocal::new();

/// Opens the cache of this name, or hands out the one that is open: a host that runs its configuration several times
/// gets the same each time. No I/O with a server; the first call that needs a connection makes it.
///
/// For a preforking host: open it before the fork, or after it, or both. A child that uses a handle of its parent's
/// makes connections of its own.
///
/// @param name           What reports and metrics call it; UTF-8, `name_length` bytes.
/// @param url            The store, for example "redis://127.0.0.1:6379", "memcached://a,b", "memory://"; the guide of
///                       prefork-cache has all URLs and options.
/// @param key_namespace  Put before each key, with a colon, and what pfc_clear() is limited to: "shop", "shop:v2". Null
///                       for none.
/// @param cache          Set to the handle where PFC_OK is returned. It is never freed.
/// @return PFC_OK; PFC_CONFLICT if it is open with another URL or namespace; PFC_BAD_URL, PFC_BAD_CONFIG or
///         PFC_BAD_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_open(
    name: *const c_char,
    name_length: usize,
    url: *const c_char,
    url_length: usize,
    key_namespace: *const c_char,
    key_namespace_length: usize,
    cache: *mut *mut pfc_cache,
) -> pfc_status {
    entry(|| {
        // SAFETY: as the comment says; so for those that follow.
        let cache = unsafe { out("pointer to the handle", cache) }?;
        *cache = ptr::null_mut();
        // SAFETY: as above.
        let name = unsafe { text("name", name, name_length) }?;
        // SAFETY: as above.
        let url = unsafe { text("URL", url, url_length) }?;
        let namespace = match key_namespace.is_null() {
            true => None,
            // SAFETY: as above.
            false => Some(unsafe { text("namespace", key_namespace, key_namespace_length) }?),
        };
        *cache = ptr::from_ref(open(name, url, namespace)?).cast_mut();
        Ok(pfc_status::PFC_OK)
    })
}

fn open(name: &str, url: &str, namespace: Option<&str>) -> Result<&'static pfc_cache, Failure> {
    let _opening = OPENING.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(open) = all_open().find(|open| open.name == name) {
        return if open.url == url && open.namespace.as_deref() == namespace {
            Ok(open)
        } else {
            let what = if open.url == url { "namespace" } else { "URL" };
            Err(Failure::new(pfc_status::PFC_CONFLICT, format!("the cache {name:?} is open, with another {what}")))
        };
    }
    let mut builder = Cache::builder(stores::from_url(url)?).name(name).on_error(errors::report);
    for part in namespace.into_iter().flat_map(|namespace| namespace.split(':')) {
        if part.is_empty() {
            return Err(Failure::new(pfc_status::PFC_BAD_ARGUMENT, "a part of the namespace is empty"));
        }
        builder = builder.namespace(part);
    }
    let opened = Box::leak(Box::new(pfc_cache {
        name: name.to_owned(),
        url: url.to_owned(),
        namespace: namespace.map(str::to_owned),
        cache: builder.register_instead(),
        next: OPEN.load(Ordering::Acquire),
    }));
    OPEN.store(opened, Ordering::Release);
    Ok(opened)
}

/// The newest first.
fn all_open() -> impl Iterator<Item = &'static pfc_cache> {
    // SAFETY: null, or one that was leaked before it was put here; so is `next`.
    let first: Option<&'static pfc_cache> = unsafe { OPEN.load(Ordering::Acquire).as_ref() };
    // SAFETY: as above.
    std::iter::successors(first, |open| unsafe { open.next.as_ref() })
}

/// In the order in which they were opened, with their names.
pub(crate) fn caches() -> Vec<(&'static str, &'static Cache)> {
    let mut caches: Vec<_> = all_open().map(|open| (open.name.as_str(), &open.cache)).collect();
    caches.reverse();
    caches
}

/// The cache of a handle.
#[inline]
pub(crate) unsafe fn of_handle(handle: *const pfc_cache) -> Result<&'static Cache, Failure> {
    // SAFETY: null, or what `pfc_open` has handed out, which is never freed.
    unsafe { handle.as_ref() }.map(|open| &open.cache).ok_or_else(|| null("handle"))
}
