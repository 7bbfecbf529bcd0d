/*
 * prefork-cache: a cache that survives fork(). The C interface.
 *
 * - Strings and values are bytes with a length. Keys, names and URLs are UTF-8. PFC_LITERAL("x") gives both for a
 *   literal.
 * - Threads: any thread may call any function at any time, but only one thread at a time may use a pfc_call, a
 *   pfc_claim or a pfc_value.
 * - Processes: everything may be used before a fork and after it, in the parent and in its children, without a hook,
 *   with every kind of fork. A child makes its own connections, and never uses one of its parent's.
 * - Locks: none is held while the caller's loader runs. A child never waits for a lock of a thread that exists only in
 *   its parent. A host language releases its own lock around calls that may wait (those with an argument `call`).
 * - Signals: an interrupted call continues, with or without SA_RESTART. Do not call any function in a signal handler.
 * - Threads and runtimes: the library starts none.
 * - Unloading: from its first use on, the library stays loaded.
 *
 * This file is generated from the sources of prefork-cache-capi.
 */

#ifndef PREFORK_CACHE_H
#define PREFORK_CACHE_H

#include <stddef.h>
#include <stdint.h>

/** The two arguments for a string literal: pfc_delete(cache, PFC_LITERAL("motd"), NULL). */
#define PFC_LITERAL(text) ("" text), (sizeof(text) - 1)

/**
 * A time to live without end: the entry stays until it is deleted or evicted.
 */
#define PFC_NEVER -1

/**
 * The version of the interface. Each addition increases it; nothing is removed.
 */
#define PFC_ABI_VERSION 1

/**
 * The status of a call. The numbers are stable; new ones may be added.
 *
 * 0 and above are outcomes. Below 0 are errors; pfc_error_message() and pfc_error_is_transient() give the details.
 */
enum pfc_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Done: there is a value or an entry, or the value was stored.
   */
  PFC_OK = 0,
  /**
   * Done: there is no value or entry, or the value was not stored.
   */
  PFC_MISS = 1,
  /**
   * There is a stale value, and another caller reloads it.
   */
  PFC_STALE = 2,
  /**
   * There is no value, or one that has to be refreshed: this caller loads it.
   */
  PFC_CLAIM = 3,
  /**
   * The call is not finished after 100 ms: call again with the same arguments.
   */
  PFC_AGAIN = 4,
  /**
   * The value is larger than the buffer.
   */
  PFC_TOO_SMALL = 5,
  /**
   * The URL has a scheme, host, port, database or option that is invalid or unknown.
   */
  PFC_BAD_URL = -1,
  /**
   * A setting is out of range, or a file that it names cannot be used.
   */
  PFC_BAD_CONFIG = -2,
  /**
   * The key is empty, is not UTF-8, or is longer than the store can hold.
   */
  PFC_BAD_KEY = -3,
  /**
   * The time to live is zero, negative, or further away than the store can express.
   */
  PFC_BAD_TTL = -4,
  /**
   * The value is larger than the server, or the store, accepts.
   */
  PFC_VALUE_TOO_LARGE = -5,
  /**
   * The value could not be encoded.
   */
  PFC_ENCODE = -6,
  /**
   * A value was read that cannot be decoded. Only pfc_take_errors() reports it.
   */
  PFC_DECODE = -7,
  /**
   * The entry is not a number, or the result is out of range.
   */
  PFC_NOT_A_NUMBER = -8,
  /**
   * Other writers kept changing the entry, until the attempts ran out.
   */
  PFC_CONTENDED = -9,
  /**
   * The server, or its configuration, does not support the operation.
   */
  PFC_UNSUPPORTED = -10,
  /**
   * The server refused the user name or password.
   */
  PFC_AUTH = -11,
  /**
   * No connection could be made.
   */
  PFC_CONNECT = -12,
  /**
   * The server has failed, and is not dialled again yet.
   */
  PFC_UNAVAILABLE = -13,
  /**
   * The limit of requests in flight to the server is reached.
   */
  PFC_FULL = -14,
  /**
   * The operation timed out.
   */
  PFC_TIMEOUT = -15,
  /**
   * A connection broke in the middle of an exchange.
   */
  PFC_IO = -16,
  /**
   * The server sent bytes that are not a reply to the request.
   */
  PFC_PROTOCOL = -17,
  /**
   * The server responded with an error.
   */
  PFC_SERVER = -18,
  /**
   * A parent process began this call, before a fork.
   */
  PFC_FORKED = -19,
  /**
   * Waiting would block the thread that has to do the work.
   */
  PFC_WOULD_DEADLOCK = -20,
  /**
   * The loader failed.
   */
  PFC_LOADER = -21,
  /**
   * Another failure.
   */
  PFC_OTHER = -22,
  /**
   * This process, or its machine, has run out of descriptors, ports or memory.
   */
  PFC_OUT_OF_RESOURCES = -23,
  /**
   * A TLS session with the server could not be established.
   */
  PFC_TLS = -24,
  /**
   * The cache is already open with another URL or namespace.
   */
  PFC_CONFLICT = -100,
  /**
   * An argument is invalid: a null pointer, or a string that is not UTF-8.
   */
  PFC_BAD_ARGUMENT = -101,
  /**
   * A bug in this library. The call may have taken effect; the cache can still be used.
   */
  PFC_PANIC = -102,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum pfc_status pfc_status;
#else
typedef int32_t pfc_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * An open cache. It stays open until the process ends: there is no function to close it. Any thread may use it at any
 * time, and so may the children of the process.
 */
typedef struct pfc_cache pfc_cache;

/**
 * A call that is not finished.
 *
 * Every function with a last argument `pfc_call **call` may wait: for at most the timeouts of the cache's URL and,
 * in a fetch, for the load of another caller. With a null pointer, it returns when it is finished; signal handlers
 * run in the meantime as usual. With a pointer to a `pfc_call *` that is null, it returns after at most about 100
 * ms: with PFC_AGAIN and the `pfc_call *` set if it is not finished. Handle signals, let other threads of the
 * language run, and call the same function again with the same arguments: the exchange continues, and nothing is
 * sent twice. When it returns any other status, the `pfc_call *` is null again. (The system's lookup of a host name
 * cannot be interrupted like this: write the address in numbers if that matters.)
 *
 * Only one thread at a time may use a call, but any thread may. The first call copies keys, values and other
 * arguments: later ones do not read them, but set their results. End a call that is no longer wanted with
 * pfc_call_cancel(); it may or may not have taken effect. A child of the process that began it gets PFC_FORKED, and
 * has to begin again.
 */
typedef struct pfc_call pfc_call;

/**
 * The claim to load a value for all callers that wait for it. pfc_fetch_complete() or pfc_fetch_fail(), on any thread,
 * end and free it.
 *
 * In a child of the process that has the claim, ending it frees it and does nothing else: the load is the parent's.
 */
typedef struct pfc_claim pfc_claim;

/**
 * Takes the value of a loader, by pfc_load_give().
 */
typedef struct pfc_load pfc_load;

/**
 * Bytes that the library returned. They are valid in this process, and in the children that it forks, until
 * pfc_value_free().
 */
typedef struct pfc_value {
  /**
   * The bytes, without a terminating zero. Null if there is no value; not null for an empty value.
   */
  const void *data;
  size_t length;
  /**
   * For pfc_value_free().
   */
  void *owner;
} pfc_value;

/**
 * A key in a list.
 */
typedef struct pfc_key {
  const char *data;
  size_t length;
} pfc_key;

/**
 * How long a loaded value is fresh, when it is reloaded, and how long it may be returned stale. All times are in
 * milliseconds.
 *
 * Every member except the first is off if it is 0. With `stale_ms` or `refresh_ahead_ms`, the times are stored with
 * the value, in an envelope that only this library reads (pfc_get() does).
 */
typedef struct pfc_expiry {
  /**
   * How long the value is fresh, or PFC_NEVER. 0 is refused.
   */
  int64_t ttl_ms;
  /**
   * How long after that it is returned stale, while one caller reloads it or while loading fails.
   */
  int64_t stale_ms;
  /**
   * The last part of the fresh time, in which one caller reloads the value while the others get the current one.
   * Must be less than `ttl_ms`.
   */
  int64_t refresh_ahead_ms;
  /**
   * Shortens the fresh time by a random part of up to this fraction, from 0 to 1, so that entries that were stored
   * together do not expire together.
   */
  double jitter;
} pfc_expiry;

/**
 * Loads a value: calls pfc_load_give() and returns 0, or returns any other number if it failed. It must return: no
 * exception and no longjmp may leave it. It may use the cache, and it may fork.
 */
typedef int (*pfc_loader)(void *user_data, struct pfc_load *load);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Returns the name of a status, such as "PFC_MISS", or "unknown": a string that is never freed.
 */
const char *pfc_status_name(int32_t status);

/**
 * Returns the message of the last error that a call on this thread returned: the operation, the server, and the cause.
 * UTF-8, without secrets; "" if there was no error.
 *
 * The string belongs to the thread. It stays valid until the next call on this thread that returns an error,
 * independently of other threads. A forked child has the message of the thread that forked.
 */
const char *pfc_error_message(void);

/**
 * Returns whether the call that caused the last error on this thread may succeed if it is made again later (1) or not
 * (0). 1 means that the server was not reached, did not respond in time, lost the connection, or refused temporarily.
 * The write of such a call may still have taken effect.
 */
int pfc_error_is_transient(void);

/**
 * Returns the errors that no call has returned, and clears the list. An example is a fetch that could not store the
 * loaded value. As JSON:
 *
 *     {"dropped": 0, "errors": [{"cache": "default", "verb": "fetch_begin", "status": -12, "name": "PFC_CONNECT",
 *                                "is_transient": true, "message": "..."}]}
 *
 * The last 64 errors of this process are kept, for all caches together; `dropped` counts older ones. A forked child
 * starts with an empty list.
 *
 * @param json  Set if PFC_OK is returned; to be freed with pfc_value_free().
 * @return PFC_OK, or PFC_MISS if there are none.
 */
pfc_status pfc_take_errors(struct pfc_value *json);

/**
 * Frees a value, and clears the structure: a second call does nothing. On any thread, also in a child of the process
 * that got the value. A null pointer is allowed.
 */
void pfc_value_free(struct pfc_value *value);

/**
 * Opens the cache of this name, or returns the handle if it is open: a host that runs its configuration several times
 * gets the same handle each time. It does no I/O with a server; the first call that needs a connection dials.
 *
 * In a preforking host, open it before the fork, or after it, or both. A child that uses its parent's handle makes its
 * own connections.
 *
 * @param name           The name in reports and metrics; UTF-8, `name_length` bytes.
 * @param url            The store, for example "redis://127.0.0.1:6379", "memcached://a,b", "memory://"; the guide of
 *                       prefork-cache has all URLs and options.
 * @param key_namespace  A prefix of each key, followed by a colon, to which pfc_clear() is limited: "shop", "shop:v2".
 *                       Null for none.
 * @param cache          Set to the handle if PFC_OK is returned. It is never freed.
 * @return PFC_OK; PFC_CONFLICT if the cache is open with another URL or namespace; PFC_BAD_URL, PFC_BAD_CONFIG or
 *         PFC_BAD_ARGUMENT.
 */
pfc_status pfc_open(const char *name,
                    size_t name_length,
                    const char *url,
                    size_t url_length,
                    const char *key_namespace,
                    size_t key_namespace_length,
                    struct pfc_cache **cache);

/**
 * Ends a call that is not finished, and frees it. On any thread, also in a child of the process that began it. A null
 * pointer is allowed.
 */
void pfc_call_cancel(struct pfc_call *call);

/**
 * Reads a value.
 *
 * @param value  Set to the value, to be freed with pfc_value_free(), if PFC_OK is returned; cleared otherwise.
 * @param call   Null to wait, see pfc_call.
 * @return PFC_OK, PFC_MISS, PFC_AGAIN, or an error.
 */
pfc_status pfc_get(const struct pfc_cache *cache,
                   const char *key,
                   size_t key_length,
                   struct pfc_value *value,
                   struct pfc_call **call);

/**
 * Reads a value into a buffer.
 *
 * @param buffer    Written to if PFC_OK is returned; not changed otherwise.
 * @param capacity  The size of the buffer in bytes.
 * @param length    Set to the length of the value if PFC_OK or PFC_TOO_SMALL is returned; 0 otherwise.
 * @param call      Null to wait, see pfc_call.
 * @return PFC_OK, PFC_MISS, PFC_TOO_SMALL, PFC_AGAIN, or an error.
 */
pfc_status pfc_get_into(const struct pfc_cache *cache,
                        const char *key,
                        size_t key_length,
                        void *buffer,
                        size_t capacity,
                        size_t *length,
                        struct pfc_call **call);

/**
 * Stores a value, whether or not there is an entry.
 *
 * @param value   Copied; may be null if its length is 0.
 * @param ttl_ms  How long it lives, in milliseconds, or PFC_NEVER. 0 is refused.
 * @param call    Null to wait, see pfc_call.
 * @return PFC_OK, PFC_AGAIN, or an error.
 */
pfc_status pfc_set(const struct pfc_cache *cache,
                   const char *key,
                   size_t key_length,
                   const void *value,
                   size_t value_length,
                   int64_t ttl_ms,
                   struct pfc_call **call);

/**
 * Stores a value if there is no entry. The arguments are those of pfc_set().
 *
 * @return PFC_OK, PFC_MISS if there was an entry, PFC_AGAIN, or an error.
 */
pfc_status pfc_add(const struct pfc_cache *cache,
                   const char *key,
                   size_t key_length,
                   const void *value,
                   size_t value_length,
                   int64_t ttl_ms,
                   struct pfc_call **call);

/**
 * Stores a value if there is an entry. The arguments are those of pfc_set().
 *
 * @return PFC_OK, PFC_MISS if there was no entry, PFC_AGAIN, or an error.
 */
pfc_status pfc_replace(const struct pfc_cache *cache,
                       const char *key,
                       size_t key_length,
                       const void *value,
                       size_t value_length,
                       int64_t ttl_ms,
                       struct pfc_call **call);

/**
 * Removes an entry, and revokes the loads of its key that are under way: they do not store their value.
 *
 * @param call  Null to wait, see pfc_call.
 * @return PFC_OK, PFC_MISS if there was no entry, PFC_AGAIN, or an error.
 */
pfc_status pfc_delete(const struct pfc_cache *cache, const char *key, size_t key_length, struct pfc_call **call);

/**
 * Returns whether there is an entry.
 *
 * @param call  Null to wait, see pfc_call.
 * @return PFC_OK, PFC_MISS, PFC_AGAIN, or an error.
 */
pfc_status pfc_exists(const struct pfc_cache *cache, const char *key, size_t key_length, struct pfc_call **call);

/**
 * Sets the time to live of an entry, from now on.
 *
 * @param ttl_ms  In milliseconds, or PFC_NEVER. 0 is refused.
 * @param call    Null to wait, see pfc_call.
 * @return PFC_OK, PFC_MISS if there is no entry, PFC_AGAIN, or an error.
 */
pfc_status pfc_touch(const struct pfc_cache *cache,
                     const char *key,
                     size_t key_length,
                     int64_t ttl_ms,
                     struct pfc_call **call);

/**
 * Returns the remaining time to live of an entry.
 *
 * @param ttl_ms  Set if PFC_OK is returned: in milliseconds, or PFC_NEVER.
 * @param call    Null to wait, see pfc_call.
 * @return PFC_OK, PFC_MISS if there is no entry, PFC_AGAIN, or an error.
 */
pfc_status pfc_expires_in(const struct pfc_cache *cache,
                          const char *key,
                          size_t key_length,
                          int64_t *ttl_ms,
                          struct pfc_call **call);

/**
 * Removes all entries of the handle's namespace. For a handle without a namespace these are all entries of the store,
 * including those of other programs.
 *
 * @param call  Null to wait, see pfc_call.
 * @return PFC_OK, PFC_AGAIN, or an error: PFC_UNSUPPORTED if Memcached's LRU crawler is off.
 */
pfc_status pfc_clear(const struct pfc_cache *cache, struct pfc_call **call);

/**
 * Adds to a counter. A missing counter starts at 0 and lives for `ttl_ms`; an existing one keeps its remaining time to
 * live. From 0 to INT64_MAX all servers behave alike; a counter on Memcached does not go below 0.
 *
 * @param by      May be negative.
 * @param ttl_ms  In milliseconds, or PFC_NEVER. 0 is refused.
 * @param result  Set to the new value if PFC_OK is returned. May be null.
 * @param call    Null to wait, see pfc_call.
 * @return PFC_OK, PFC_AGAIN, or an error: PFC_NOT_A_NUMBER if the entry is not a counter.
 */
pfc_status pfc_increment(const struct pfc_cache *cache,
                         const char *key,
                         size_t key_length,
                         int64_t by,
                         int64_t ttl_ms,
                         int64_t *result,
                         struct pfc_call **call);

/**
 * Reads a counter.
 *
 * @param result  Set if PFC_OK is returned.
 * @param call    Null to wait, see pfc_call.
 * @return PFC_OK, PFC_MISS, PFC_AGAIN, or an error: PFC_NOT_A_NUMBER if the entry is not a counter.
 */
pfc_status pfc_counter(const struct pfc_cache *cache,
                       const char *key,
                       size_t key_length,
                       int64_t *result,
                       struct pfc_call **call);

/**
 * Reads many values, with one round trip to each server.
 *
 * @param keys      `count` keys. If one is empty or not UTF-8, the whole call is PFC_BAD_KEY.
 * @param values    `count` values, each set to its key's value or cleared; each to be freed with pfc_value_free().
 * @param statuses  `count` statuses, each set to PFC_OK, PFC_MISS or an error. May be null.
 * @param call      Null to wait, see pfc_call.
 * @return PFC_OK if every key could be looked up; PFC_AGAIN; or the first error, with which the values of other keys
 *         may still be set.
 */
pfc_status pfc_get_many(const struct pfc_cache *cache,
                        const struct pfc_key *keys,
                        size_t count,
                        struct pfc_value *values,
                        pfc_status *statuses,
                        struct pfc_call **call);

/**
 * Removes many entries, with one round trip to each server.
 *
 * @param keys      `count` keys. If one is empty or not UTF-8, the whole call is PFC_BAD_KEY.
 * @param statuses  `count` statuses, each set to PFC_OK, PFC_MISS or an error. May be null.
 * @param call      Null to wait, see pfc_call.
 * @return PFC_OK if every key was deleted or had no entry; PFC_AGAIN; or the first error.
 */
pfc_status pfc_delete_many(const struct pfc_cache *cache,
                           const struct pfc_key *keys,
                           size_t count,
                           pfc_status *statuses,
                           struct pfc_call **call);

/**
 * Reads a value, or makes this caller the one that loads it: among the threads of this process and, on a shared
 * server, among all processes. The other callers wait for the value.
 *
 *     PFC_OK     There is a value.
 *     PFC_STALE  There is a stale value, and another caller reloads it.
 *     PFC_CLAIM  This caller has to load the value: `claim` is set. If there is an older value, it is in `value`: the
 *                other callers get it in the meantime, and this one may use it if it cannot load.
 *
 * So load only if PFC_CLAIM is returned. No frame of this library is on the stack then: a loader may throw, longjmp
 * or fork, as long as pfc_fetch_complete() or pfc_fetch_fail() is called in the end. A fetch of the same key by the
 * thread that has the claim does not wait for it.
 *
 * Failures of the cache do not make a fetch fail: if the server does not respond, this caller loads, and
 * pfc_take_errors() returns the failure.
 *
 * @param load_timeout_ms  How long the load may take before others stop waiting for it, and how long this caller
 *                         waits for another one: in milliseconds; 0 for the default of 60 s. At most a year.
 * @param value            Set to a value, to be freed with pfc_value_free(), or cleared.
 * @param claim            Set if PFC_CLAIM is returned; null otherwise.
 * @param call             Null to wait, see pfc_call.
 * @return One of the three, PFC_AGAIN, or an error: PFC_BAD_KEY, PFC_BAD_ARGUMENT.
 */
pfc_status pfc_fetch_begin(const struct pfc_cache *cache,
                           const char *key,
                           size_t key_length,
                           int64_t load_timeout_ms,
                           struct pfc_value *value,
                           struct pfc_claim **claim,
                           struct pfc_call **call);

/**
 * Ends a claim with the loaded value: stores it, and passes it to the callers that wait. If the key was deleted in the
 * meantime, by pfc_delete(), the value is not stored.
 *
 * @param claim   Freed by the first call, whatever it returns, unless that is PFC_BAD_TTL or PFC_BAD_ARGUMENT.
 * @param value   Copied; may be null if its length is 0.
 * @param expiry  How long the value lives. Null: it is passed to the waiting callers of this process, and not stored.
 * @param call    Null to wait, see pfc_call.
 * @return PFC_OK, PFC_AGAIN, PFC_BAD_TTL or PFC_BAD_ARGUMENT. If the value could not be stored, pfc_take_errors()
 *         returns the failure.
 */
pfc_status pfc_fetch_complete(struct pfc_claim *claim,
                              const void *value,
                              size_t value_length,
                              const struct pfc_expiry *expiry,
                              struct pfc_call **call);

/**
 * Ends a claim without a value: the load failed, and the next caller that waits loads.
 *
 * @param claim  Freed by the first call, whatever it returns.
 * @param old    Set to the older value, to be freed with pfc_value_free(), or cleared. May be null.
 * @param call   Null to wait, see pfc_call.
 * @return PFC_OK if there is no older value; PFC_STALE if there is one: fetches return it, and the load is tried again
 *         after 5 s; PFC_AGAIN; or PFC_BAD_ARGUMENT.
 */
pfc_status pfc_fetch_fail(struct pfc_claim *claim, struct pfc_value *old, struct pfc_call **call);

/**
 * Passes on the value of a loader. Of several calls the last one counts.
 *
 * @param load  The loader's argument.
 * @param data  Copied; may be null if its length is 0.
 * @return PFC_OK or PFC_BAD_ARGUMENT.
 */
pfc_status pfc_load_give(struct pfc_load *load, const void *data, size_t length);

/**
 * Reads a value, or calls `loader` and stores the loaded value. For C; other languages use pfc_fetch_begin(), whose
 * comment explains which caller loads and which ones wait. Returns when it is finished.
 *
 * @param expiry           How long a loaded value lives.
 * @param load_timeout_ms  As in pfc_fetch_begin().
 * @param loader           Called on this thread, at most once.
 * @param user_data        Passed to the loader.
 * @param value            Set to the value, to be freed with pfc_value_free(), if PFC_OK or PFC_STALE is returned;
 *                         cleared otherwise.
 * @return PFC_OK; PFC_STALE for a stale value, since another caller reloads it or the loader failed; PFC_LOADER if
 *         the loader failed and there is no older value; PFC_BAD_KEY, PFC_BAD_TTL or PFC_BAD_ARGUMENT.
 */
pfc_status pfc_fetch(const struct pfc_cache *cache,
                     const char *key,
                     size_t key_length,
                     const struct pfc_expiry *expiry,
                     int64_t load_timeout_ms,
                     pfc_loader loader,
                     void *user_data,
                     struct pfc_value *value);

/**
 * Returns the statistics of a cache in this process, as a JSON object: `hits`, `misses`, `undecodable`, `stale`,
 * `loads`, `failed_loads`, `coalesced`, `errors`, `reconnects`, `sockets_cut`, and `servers`, an array of objects
 * with `address`, `connections`, `in_flight`, `dials`, `timeouts` and `is_down`. The names are stable; others may be
 * added. A forked child counts from zero.
 *
 * @param json  Set if PFC_OK is returned; to be freed with pfc_value_free().
 * @return PFC_OK or PFC_BAD_ARGUMENT.
 */
pfc_status pfc_stats(const struct pfc_cache *cache, struct pfc_value *json);

/**
 * Returns the statistics of all open caches, in the text format of Prometheus:
 * `prefork_cache_hits_total{cache="default"}` and so on, and
 * `prefork_cache_server_connections{cache="default",server="127.0.0.1:6379"}`.
 *
 * @param text  Set if PFC_OK is returned; to be freed with pfc_value_free().
 * @return PFC_OK or PFC_BAD_ARGUMENT.
 */
pfc_status pfc_prometheus(struct pfc_value *text);

/**
 * Returns the version of the interface of the loaded library. Compare it with PFC_ABI_VERSION of the header: if it is
 * less, the library may lack functions that the program uses.
 */
uint32_t pfc_abi_version(void);

/**
 * Refreshes the stores of this process after a fork, now instead of at their first use: for the hook of a host. It
 * is optional. It cuts the inherited connections, and makes none. It may be called late, repeatedly, in a process
 * that was not forked, or not at all.
 *
 * @param report  Set to one line of text for a log, also if an error is returned; to be freed with pfc_value_free().
 *                May be null.
 * @return PFC_OK, or the error of a store that could not be refreshed: the refresh is tried again at its first use.
 */
pfc_status pfc_after_fork(struct pfc_value *report);

/**
 * pfc_after_fork() for hooks that name a function without arguments, such as uWSGI's
 * `hook-post-fork = call:prefork_cache_after_fork`.
 */
void prefork_cache_after_fork(void);

/**
 * Returns the generation of this process: 1 in the process that first used the library, one more than its parent's in
 * each forked child. (The children of one process have the same.) Takes a nanosecond.
 */
uint64_t pfc_generation(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PREFORK_CACHE_H */
