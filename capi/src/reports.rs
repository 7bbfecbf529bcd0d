//! Statistics of this process's caches.

use prefork_cache::Stats;

use crate::entry::{entry, out};
use crate::handle::{caches, of_handle, pfc_cache};
use crate::status::pfc_status;
use crate::value::pfc_value;

/// Returns the statistics of a cache in this process, as a JSON object: `hits`, `misses`, `undecodable`, `stale`,
/// `loads`, `failed_loads`, `coalesced`, `errors`, `reconnects`, `sockets_cut`, and `servers`, an array of objects
/// with `address`, `connections`, `in_flight`, `dials`, `timeouts` and `is_down`. The names are stable; others may be
/// added. A forked child counts from zero.
///
/// @param json  Set if PFC_OK is returned; to be freed with pfc_value_free().
/// @return PFC_OK or PFC_BAD_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_stats(cache: *const pfc_cache, json: *mut pfc_value) -> pfc_status {
    entry(|| {
        // SAFETY: the caller passes valid pointers, as the comment requires; so for all below.
        let json = unsafe { out("value", json) }?;
        *json = pfc_value::NONE;
        // SAFETY: as above.
        *json = pfc_value::of(unsafe { of_handle(cache) }?.stats().to_json());
        Ok(pfc_status::PFC_OK)
    })
}

/// Returns the statistics of all open caches, in the text format of Prometheus:
/// `prefork_cache_hits_total{cache="default"}` and so on, and
/// `prefork_cache_server_connections{cache="default",server="127.0.0.1:6379"}`.
///
/// @param text  Set if PFC_OK is returned; to be freed with pfc_value_free().
/// @return PFC_OK or PFC_BAD_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_prometheus(text: *mut pfc_value) -> pfc_status {
    entry(|| {
        // SAFETY: as above.
        let text = unsafe { out("value", text) }?;
        let stats: Vec<(&str, Stats)> = caches().into_iter().map(|(name, cache)| (name, cache.stats())).collect();
        *text = pfc_value::of(Stats::to_prometheus(&stats));
        Ok(pfc_status::PFC_OK)
    })
}
