/*
 * prefork-cache: a cache that survives fork(). The C interface.
 *
 * - Texts and values are bytes with a length. Keys, names and URLs are UTF-8. PFC_LITERAL("x") is both of a literal.
 * - Threads: any function may be called by any thread at any time, but a pfc_call, a pfc_claim and a pfc_value are one
 *   thread's at a time.
 * - Processes: all of it may be used before a fork and after it, in the parent and in its children, without a hook, however
 *   they were forked. A child makes connections of its own, and never uses one of its parent's.
 * - Locks: none is held while a loader of the caller's runs, and none of a thread that a fork took away makes a child wait.
 *   A host language releases its own lock around calls that may wait (those with an argument `call`).
 * - Signals: a call that is interrupted goes on, with or without SA_RESTART. Call nothing here in a signal handler.
 * - Threads and runtimes: none is started.
 * - Unloading: from its first use on the library stays loaded.
 *
 * This file is generated from the sources of prefork-cache-capi.
 */

#ifndef PREFORK_CACHE_H
#define PREFORK_CACHE_H

#include <stddef.h>
#include <stdint.h>

/** The two arguments of a literal text: pfc_delete(cache, PFC_LITERAL("motd"), NULL). */
#define PFC_LITERAL(text) ("" text), (sizeof(text) - 1)

/**
 * In the place of a time to live: the entry stays until it is deleted or evicted.
 */
#define PFC_NEVER -1

/**
 * The version of the interface. It goes up with each addition; what is there stays.
 */
#define PFC_ABI_VERSION 1

/**
 * What a call has come to. The numbers stay the same; new ones may be added.
 *
 * From 0 on it is an outcome, below 0 an error, of which pfc_error_message() and pfc_error_is_transient() say more.
 */
enum pfc_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Done; there is a value, it was stored, it was there.
   */
  PFC_OK = 0,
  /**
   * There is no value, it was not stored, it was not there.
   */
  PFC_MISS = 1,
  /**
   * There is a value, and it is stale: another caller loads it.
   */
  PFC_STALE = 2,
  /**
   * There is no value, or one that is to be refreshed: this caller loads it.
   */
  PFC_CLAIM = 3,
  /**
   * The call is not done after 100 ms: call again with the same arguments.
   */
  PFC_AGAIN = 4,
  /**
   * There is a value, and it is larger than the buffer.
   */
  PFC_TOO_SMALL = 5,
  /**
   * The URL has a scheme, host, port, database or option that is not understood.
   */
  PFC_BAD_URL = -1,
  /**
   * A setting is out of its range, or a file that it names cannot be used.
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
   * A value was read that is none of this program's. Reported by pfc_take_errors() alone.
   */
  PFC_DECODE = -7,
  /**
   * The entry holds something that is not a number, or the result does not fit into one.
   */
  PFC_NOT_A_NUMBER = -8,
  /**
   * Other writers kept changing the entry, until the attempts ran out.
   */
  PFC_CONTENDED = -9,
  /**
   * The server, or its configuration, does not offer what was asked for.
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
   * The server has failed, and is not dialled again for the moment.
   */
  PFC_UNAVAILABLE = -13,
  /**
   * As many requests to the server are under way as there may be.
   */
  PFC_FULL = -14,
  /**
   * The time for the operation ran out.
   */
  PFC_TIMEOUT = -15,
  /**
   * A connection broke in the middle of an exchange.
   */
  PFC_IO = -16,
  /**
   * The server sent something that is not a reply to what it was asked.
   */
  PFC_PROTOCOL = -17,
  /**
   * The server answered with an error.
   */
  PFC_SERVER = -18,
  /**
   * A parent process began this call, before a fork.
   */
  PFC_FORKED = -19,
  /**
   * Waiting here would block the thread that has to do the work.
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
   * There is no TLS with the server.
   */
  PFC_TLS = -24,
  /**
   * The cache is open already, with another URL or namespace.
   */
  PFC_CONFLICT = -100,
  /**
   * An argument is not what it must be: a pointer that is null, a text that is not UTF-8.
   */
  PFC_BAD_ARGUMENT = -101,
  /**
   * There is a mistake in this library. The call has had an effect or not; the cache can be used on.
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
 * A cache that is open, for the life of the process: there is nothing to close. Any thread may use it at any time, and
 * so may the children of the process.
 */
typedef struct pfc_cache pfc_cache;

/**
 * A call that is not done.
 *
 * Every function with a last argument `pfc_call **call` may wait, for at most the timeouts of the cache's URL, and a
 * fetch for the load of another caller. With a null pointer there, it comes back when it is done, and signal handlers
 * run meanwhile as they do. With a pointer to a `pfc_call *` that is null, it comes back after about 100 ms at the
 * latest: with PFC_AGAIN if it is not done, and the `pfc_call *` set. Serve signals, let other threads of the language
 * run, and call the same function again with the same arguments: the exchange that is under way is gone on with, and
 * nothing is sent twice. When it returns anything else the `pfc_call *` is null again. (The lookup of a host's name by
 * the system cannot be left: write the address in numbers where that matters.)
 *
 * A call is one thread's at a time, and any thread's. Keys, values and other arguments are copied by the first call:
 * later ones do not read them, but write what they return. A call that is not wanted any more is ended by
 * pfc_call_cancel(); it has taken effect or not. A child of the process that began it gets PFC_FORKED: it begins
 * again.
 */
typedef struct pfc_call pfc_call;

/**
 * The duty to load a value, for all who wait for it: to be ended by pfc_fetch_complete() or pfc_fetch_fail(), by any
 * thread, which free it.
 *
 * In a child of the process that has claimed, ending it frees it and does nothing else: the load is the parent's.
 */
typedef struct pfc_claim pfc_claim;

/**
 * Where a loader puts what it has loaded, by pfc_load_give().
 */
typedef struct pfc_load pfc_load;

/**
 * Bytes that were handed out. They stay, in this process and in the children that it forks, until pfc_value_free().
 */
typedef struct pfc_value {
  /**
   * The bytes; no zero follows them. Null where there is no value, not null for one of no bytes.
   */
  const void *data;
  size_t length;
  /**
   * For pfc_value_free().
   */
  void *owner;
} pfc_value;

/**
 * A key among many.
 */
typedef struct pfc_key {
  const char *data;
  size_t length;
} pfc_key;

/**
 * How long a value that was loaded is fresh, and what happens then. All times are in milliseconds.
 *
 * Members that are 0 mean nothing, but for the first. Where `stale_ms` or `refresh_ahead_ms` is set, the times are
 * stored with the value, in an envelope that only this library reads (pfc_get() does).
 */
typedef struct pfc_expiry {
  /**
   * How long it is fresh, or PFC_NEVER. 0 is refused.
   */
  int64_t ttl_ms;
  /**
   * After that, how long it goes on serving, while one caller loads it again, and as long as that fails.
   */
  int64_t stale_ms;
  /**
   * In the last part of its fresh time, of this length, one caller loads it again while the others have the current
   * one. Must be less than `ttl_ms`.
   */
  int64_t refresh_ahead_ms;
  /**
   * Shortens the fresh time by a random part of up to this fraction, from 0 to 1, so that what was stored together
   * does not end together.
   */
  double jitter;
} pfc_expiry;

/**
 * Loads a value: calls pfc_load_give() and returns 0, or anything else if it has failed. It must return: no exception
 * and no longjmp may go past it. It may use the cache, and it may fork.
 */
typedef int (*pfc_loader)(void *user_data, struct pfc_load *load);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The name of a status, such as "PFC_MISS": a string that stays. "unknown" for a number that is none.
 */
const char *pfc_status_name(int32_t status);

/**
 * What is to be said of the last error that a call on this thread has returned: what was being done, to which server,
 * and why it failed. UTF-8, without secrets; "" if there was none.
 *
 * The string is the thread's: it stays until the next call on it that returns an error, whatever other threads do. A
 * forked child has that of the thread that forked.
 */
const char *pfc_error_message(void);

/**
 * Whether the same call may well succeed later (1) or not (0), after the last error on this thread: the server was not
 * reached, did not answer in time, lost the connection, or refused for the moment. It does not say that a write had no
 * effect.
 */
int pfc_error_is_transient(void);

/**
 * Hands out the errors that no call has returned, and forgets them: a fetch that could not store what was loaded, for
 * example. As JSON:
 *
 *     {"dropped": 0, "errors": [{"cache": "default", "verb": "fetch_begin", "status": -12, "name": "PFC_CONNECT",
 *                                "is_transient": true, "message": "..."}]}
 *
 * The last 64 of this process are kept, of all caches; `dropped` is how many there were before. A forked child begins
 * without any.
 *
 * @param json  Set where PFC_OK is returned; to be freed with pfc_value_free().
 * @return PFC_OK, or PFC_MISS if there are none.
 */
pfc_status pfc_take_errors(struct pfc_value *json);

/**
 * Frees what was handed out, and clears the structure: another time does nothing. On any thread, also in a child of
 * the process that it was handed out to. Takes a null pointer.
 */
void pfc_value_free(struct pfc_value *value);

/**
 * Opens the cache of this name, or hands out the one that is open: a host that runs its configuration several times
 * gets the same each time. No I/O with a server; the first call that needs a connection makes it.
 *
 * For a preforking host: open it before the fork, or after it, or both. A child that uses a handle of its parent's
 * makes connections of its own.
 *
 * @param name           What reports and metrics call it; UTF-8, `name_length` bytes.
 * @param url            The store, for example "redis://127.0.0.1:6379", "memcached://a,b", "memory://"; the guide of
 *                       prefork-cache has all URLs and options.
 * @param key_namespace  Put before each key, with a colon, and what pfc_clear() is limited to: "shop", "shop:v2". Null
 *                       for none.
 * @param cache          Set to the handle where PFC_OK is returned. It is never freed.
 * @return PFC_OK; PFC_CONFLICT if it is open with another URL or namespace; PFC_BAD_URL, PFC_BAD_CONFIG or
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
 * Ends a call that is not done, and frees it. On any thread; in a child of the process that began it too. Takes a null
 * pointer.
 */
void pfc_call_cancel(struct pfc_call *call);

/**
 * Reads a value.
 *
 * @param value  Set to the value, to be freed with pfc_value_free(), where PFC_OK is returned; cleared otherwise.
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
 * @param buffer    Written to where PFC_OK is returned; otherwise left as it is.
 * @param capacity  How many bytes it has room for.
 * @param length    Set to the length of the value, also where PFC_TOO_SMALL is returned; 0 otherwise.
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
 * Stores a value, whatever is there.
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
 * Stores a value where there is none. Arguments as of pfc_set().
 *
 * @return PFC_OK, PFC_MISS if there was one, PFC_AGAIN, or an error.
 */
pfc_status pfc_add(const struct pfc_cache *cache,
                   const char *key,
                   size_t key_length,
                   const void *value,
                   size_t value_length,
                   int64_t ttl_ms,
                   struct pfc_call **call);

/**
 * Stores a value in the place of another. Arguments as of pfc_set().
 *
 * @return PFC_OK, PFC_MISS if there was none, PFC_AGAIN, or an error.
 */
pfc_status pfc_replace(const struct pfc_cache *cache,
                       const char *key,
                       size_t key_length,
                       const void *value,
                       size_t value_length,
                       int64_t ttl_ms,
                       struct pfc_call **call);

/**
 * Removes an entry. After that no load that is under way stores a value under its key.
 *
 * @param call  Null to wait, see pfc_call.
 * @return PFC_OK, PFC_MISS if there was none, PFC_AGAIN, or an error.
 */
pfc_status pfc_delete(const struct pfc_cache *cache, const char *key, size_t key_length, struct pfc_call **call);

/**
 * Whether there is an entry.
 *
 * @param call  Null to wait, see pfc_call.
 * @return PFC_OK, PFC_MISS, PFC_AGAIN, or an error.
 */
pfc_status pfc_exists(const struct pfc_cache *cache, const char *key, size_t key_length, struct pfc_call **call);

/**
 * Gives an entry another time to live, from now on.
 *
 * @param ttl_ms  In milliseconds, or PFC_NEVER. 0 is refused.
 * @param call    Null to wait, see pfc_call.
 * @return PFC_OK, PFC_MISS if there is none, PFC_AGAIN, or an error.
 */
pfc_status pfc_touch(const struct pfc_cache *cache,
                     const char *key,
                     size_t key_length,
                     int64_t ttl_ms,
                     struct pfc_call **call);

/**
 * How long an entry lives from now on.
 *
 * @param ttl_ms  Set where PFC_OK is returned: in milliseconds, or PFC_NEVER.
 * @param call    Null to wait, see pfc_call.
 * @return PFC_OK, PFC_MISS if there is none, PFC_AGAIN, or an error.
 */
pfc_status pfc_expires_in(const struct pfc_cache *cache,
                          const char *key,
                          size_t key_length,
                          int64_t *ttl_ms,
                          struct pfc_call **call);

/**
 * Removes all entries of the handle's namespace; of a handle without one, all entries of the store, whoever's they
 * are.
 *
 * @param call  Null to wait, see pfc_call.
 * @return PFC_OK, PFC_AGAIN, or an error: PFC_UNSUPPORTED by Memcached where its crawler is off.
 */
pfc_status pfc_clear(const struct pfc_cache *cache, struct pfc_call **call);

/**
 * Adds to a counter. One that is not there begins at 0, and then lives for `ttl_ms`; one that is there keeps the time
 * that it has left. From 0 to INT64_MAX all servers do the same; below 0 Memcached stays at 0.
 *
 * @param by      May be negative.
 * @param ttl_ms  In milliseconds, or PFC_NEVER. 0 is refused.
 * @param result  Set to what it has come to where PFC_OK is returned. May be null.
 * @param call    Null to wait, see pfc_call.
 * @return PFC_OK, PFC_AGAIN, or an error: PFC_NOT_A_NUMBER for what is none.
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
 * @param result  Set where PFC_OK is returned.
 * @param call    Null to wait, see pfc_call.
 * @return PFC_OK, PFC_MISS, PFC_AGAIN, or an error: PFC_NOT_A_NUMBER for what is none.
 */
pfc_status pfc_counter(const struct pfc_cache *cache,
                       const char *key,
                       size_t key_length,
                       int64_t *result,
                       struct pfc_call **call);

/**
 * Reads many values, in one round trip to each server.
 *
 * @param keys      `count` of them. One that is empty or not UTF-8 is PFC_BAD_KEY for the whole call.
 * @param values    `count` of them, each set to its key's value, or cleared; to be freed with pfc_value_free() each.
 * @param statuses  `count` of them, each set to PFC_OK, PFC_MISS or an error. May be null.
 * @param call      Null to wait, see pfc_call.
 * @return PFC_OK if every key could be looked up; PFC_AGAIN; or the first error, where the values of other keys may be
 *         set all the same.
 */
pfc_status pfc_get_many(const struct pfc_cache *cache,
                        const struct pfc_key *keys,
                        size_t count,
                        struct pfc_value *values,
                        pfc_status *statuses,
                        struct pfc_call **call);

/**
 * Removes many entries, in one round trip to each server.
 *
 * @param keys      `count` of them. One that is empty or not UTF-8 is PFC_BAD_KEY for the whole call.
 * @param statuses  `count` of them, each set to PFC_OK, PFC_MISS or an error. May be null.
 * @param call      Null to wait, see pfc_call.
 * @return PFC_OK if every key could be deleted or was not there; PFC_AGAIN; or the first error.
 */
pfc_status pfc_delete_many(const struct pfc_cache *cache,
                           const struct pfc_key *keys,
                           size_t count,
                           pfc_status *statuses,
                           struct pfc_call **call);

/**
 * Reads a value, or else makes this caller the one that loads it: among the threads of this process and, on a shared
 * server, among all processes. The others wait for it.
 *
 *     PFC_OK     There is a value.
 *     PFC_STALE  There is a stale value, and another caller loads it again.
 *     PFC_CLAIM  This caller is to load: `claim` is set. If there is an older value, it is in `value`: it serves the
 *                other callers meanwhile, and this one if it cannot load.
 *
 * So load only where PFC_CLAIM is returned, and with nothing of this library on the stack: a loader may throw, longjmp
 * or fork as it likes, as long as pfc_fetch_complete() or pfc_fetch_fail() is called in the end. A fetch of the same
 * key by the thread that has the claim does not wait for it.
 *
 * The cache's own failures are no reason not to have a value: where the server does not answer, this caller loads, and
 * the failure is among those of pfc_take_errors().
 *
 * @param load_timeout_ms  How long the load may take before others no longer wait for it, and how long this caller
 *                         waits for another one: in milliseconds; 0 for the default of 60 s. At most a year.
 * @param value            Set to a value, to be freed with pfc_value_free(), or cleared.
 * @param claim            Set where PFC_CLAIM is returned; null otherwise.
 * @param call             Null to wait, see pfc_call.
 * @return One of these, PFC_AGAIN, or an error: PFC_BAD_KEY, PFC_BAD_ARGUMENT.
 */
pfc_status pfc_fetch_begin(const struct pfc_cache *cache,
                           const char *key,
                           size_t key_length,
                           int64_t load_timeout_ms,
                           struct pfc_value *value,
                           struct pfc_claim **claim,
                           struct pfc_call **call);

/**
 * Ends a claim with what was loaded: stores it, and hands it to those who wait. After a pfc_delete() of the key
 * meanwhile it is not stored.
 *
 * @param claim   Freed by the first call, whatever it returns, unless that is PFC_BAD_TTL or PFC_BAD_ARGUMENT.
 * @param value   Copied; may be null if its length is 0.
 * @param expiry  How long it lives. Null: it is for those who wait in this process, and is not stored.
 * @param call    Null to wait, see pfc_call.
 * @return PFC_OK, PFC_AGAIN, PFC_BAD_TTL or PFC_BAD_ARGUMENT. That it could not be stored is among the errors of
 *         pfc_take_errors().
 */
pfc_status pfc_fetch_complete(struct pfc_claim *claim,
                              const void *value,
                              size_t value_length,
                              const struct pfc_expiry *expiry,
                              struct pfc_call **call);

/**
 * Ends a claim without a value: the load has failed, and the next of those who wait loads.
 *
 * @param claim  Freed by the first call, whatever it returns.
 * @param old    Set to the older value, to be freed with pfc_value_free(), or cleared. May be null.
 * @param call   Null to wait, see pfc_call.
 * @return PFC_OK if there is no older value; PFC_STALE if there is one: it goes on serving, and the next try comes
 *         after 5 s; PFC_AGAIN; or PFC_BAD_ARGUMENT.
 */
pfc_status pfc_fetch_fail(struct pfc_claim *claim, struct pfc_value *old, struct pfc_call **call);

/**
 * Hands over what a loader has loaded. Of several calls the last one counts.
 *
 * @param load  What the loader was given.
 * @param data  Copied; may be null if its length is 0.
 * @return PFC_OK or PFC_BAD_ARGUMENT.
 */
pfc_status pfc_load_give(struct pfc_load *load, const void *data, size_t length);

/**
 * Reads a value, or else calls `loader` and stores what it has loaded: for C. For other languages see
 * pfc_fetch_begin(), which says who loads and who waits; this function returns when it is done.
 *
 * @param expiry           How long a loaded value lives.
 * @param load_timeout_ms  As of pfc_fetch_begin().
 * @param loader           Called on this thread, at most once.
 * @param user_data        Handed to it.
 * @param value            Set to the value, to be freed with pfc_value_free(), where PFC_OK or PFC_STALE is returned;
 *                         cleared otherwise.
 * @return PFC_OK; PFC_STALE for a stale value, since another caller loads it or the loader has failed; PFC_LOADER if
 *         the loader has failed and there is no older value; PFC_BAD_KEY, PFC_BAD_TTL or PFC_BAD_ARGUMENT.
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
 * What this process has done through a cache, as a JSON object: `hits`, `misses`, `undecodable`, `stale`, `loads`,
 * `failed_loads`, `coalesced`, `errors`, `reconnects`, `sockets_cut`, and `servers`, an array of objects with
 * `address`, `connections`, `in_flight`, `dials`, `timeouts` and `is_down`. The names stay; others may be added. A
 * forked child counts from zero.
 *
 * @param json  Set where PFC_OK is returned; to be freed with pfc_value_free().
 * @return PFC_OK or PFC_BAD_ARGUMENT.
 */
pfc_status pfc_stats(const struct pfc_cache *cache, struct pfc_value *json);

/**
 * The same of all caches that are open, in the text format of Prometheus: `prefork_cache_hits_total{cache="default"}`
 * and so on, and `prefork_cache_server_connections{cache="default",server="127.0.0.1:6379"}`.
 *
 * @param text  Set where PFC_OK is returned; to be freed with pfc_value_free().
 * @return PFC_OK or PFC_BAD_ARGUMENT.
 */
pfc_status pfc_prometheus(struct pfc_value *text);

/**
 * The version of the interface of the library that was loaded, to be compared with PFC_ABI_VERSION of the header: it
 * is at least that, or the program uses what the library does not have.
 */
uint32_t pfc_abi_version(void);

/**
 * Brings this process up to date after a fork, now rather than at first use: for the hook that a host offers, and
 * never needed. It cuts the connections that the process has inherited; it makes none. Called late, often, in a
 * process that was not forked, or not at all, everything works alike.
 *
 * @param report  Set to one line of text for a log, also where an error is returned; to be freed with
 *                pfc_value_free(). May be null.
 * @return PFC_OK, or the error of a store that could not be brought up to date: it is tried again at its first use.
 */
pfc_status pfc_after_fork(struct pfc_value *report);

/**
 * pfc_after_fork() for hooks that name a function without arguments, such as uWSGI's
 * `hook-post-fork = call:prefork_cache_after_fork`.
 */
void prefork_cache_after_fork(void);

/**
 * A number that is another one in each process that was forked since the library was first used: 1 in the first. (The
 * children of one process have the same.) Costs a nanosecond.
 */
uint64_t pfc_generation(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PREFORK_CACHE_H */
