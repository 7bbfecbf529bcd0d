//! Handles: the caches that are open in this process.

use std::ffi::c_char;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};

use prefork_cache::lifecycle::ProcessLocal;
use prefork_cache::{Cache, stores};

use crate::background_errors;
use crate::entry::{entry, null, out, string};
use crate::errors::Failure;
use crate::status::pfc_status;

/// An open cache. It stays open until the process ends: there is no function to close it. Any thread may use it at any
/// time, and so may the children of the process.
pub struct pfc_cache {
    name: String,
    url: String,
    namespace: Option<String>,
    pub(crate) cache: Cache,
    /// The handle that was opened before this one; neither is freed.
    next: *const pfc_cache,
}

/// The handle that was opened last. The list is consistent at any time, so a child inherits it so, whatever its
/// parent's threads were doing at the fork.
static OPEN: AtomicPtr<pfc_cache> = AtomicPtr::new(ptr::null_mut());

/// Held while a thread of this process opens a cache.
static OPENING: ProcessLocal<Mutex<()>> = ProcessLocal::new();

/// Opens the cache of this name, or returns the handle if it is open: a host that runs its configuration several times
/// gets the same handle each time. It does no I/O with a server; the first call that needs a connection dials.
///
/// In a preforking host, open it before the fork, or after it, or both. A child that uses its parent's handle makes its
/// own connections.
///
/// @param name           The name in reports and metrics; UTF-8, `name_length` bytes.
/// @param url            The store, for example "redis://127.0.0.1:6379", "memcached://a,b", "memory://"; the guide of
///                       prefork-cache has all URLs and options.
/// @param key_namespace  A prefix of each key, followed by a colon, to which pfc_clear() is limited: "shop", "shop:v2".
///                       Null for none.
/// @param cache          Set to the handle if PFC_OK is returned. It is never freed.
/// @return PFC_OK; PFC_CONFLICT if the cache is open with another URL or namespace; PFC_BAD_URL, PFC_BAD_CONFIG or
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
        // SAFETY: the caller passes valid pointers, as the comment requires; so for all below.
        let cache = unsafe { out("pointer to the handle", cache) }?;
        *cache = ptr::null_mut();
        // SAFETY: as above.
        let name = unsafe { string("name", name, name_length) }?;
        // SAFETY: as above.
        let url = unsafe { string("URL", url, url_length) }?;
        let namespace = match key_namespace.is_null() {
            true => None,
            // SAFETY: as above.
            false => Some(unsafe { string("namespace", key_namespace, key_namespace_length) }?),
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
            Err(Failure::new(pfc_status::PFC_CONFLICT, format!("the cache {name:?} is open with another {what}")))
        };
    }
    let mut builder = Cache::builder(stores::from_url(url)?).name(name).on_error(background_errors::report);
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

/// Returns the open handles, newest first.
fn all_open() -> impl Iterator<Item = &'static pfc_cache> {
    // SAFETY: null, or a handle that was leaked before it was stored here; so is `next`.
    let first: Option<&'static pfc_cache> = unsafe { OPEN.load(Ordering::Acquire).as_ref() };
    // SAFETY: as above.
    std::iter::successors(first, |open| unsafe { open.next.as_ref() })
}

/// Returns the open caches with their names, in the order in which they were opened.
pub(crate) fn caches() -> Vec<(&'static str, &'static Cache)> {
    let mut caches: Vec<_> = all_open().map(|open| (open.name.as_str(), &open.cache)).collect();
    caches.reverse();
    caches
}

/// Returns the cache of a handle.
#[inline]
pub(crate) unsafe fn of_handle(handle: *const pfc_cache) -> Result<&'static Cache, Failure> {
    // SAFETY: null, or a handle of `pfc_open`, which is never freed.
    unsafe { handle.as_ref() }.map(|open| &open.cache).ok_or_else(|| null("handle"))
}
