#define FFI_SCOPE "prefork_cache"
#define FFI_LIB "libprefork_cache.so.0"
enum pfc_status
 {
  PFC_OK = 0,
  PFC_MISS = 1,
  PFC_STALE = 2,
  PFC_CLAIM = 3,
  PFC_AGAIN = 4,
  PFC_TOO_SMALL = 5,
  PFC_BAD_URL = -1,
  PFC_BAD_CONFIG = -2,
  PFC_BAD_KEY = -3,
  PFC_BAD_TTL = -4,
  PFC_VALUE_TOO_LARGE = -5,
  PFC_ENCODE = -6,
  PFC_DECODE = -7,
  PFC_NOT_A_NUMBER = -8,
  PFC_CONTENDED = -9,
  PFC_UNSUPPORTED = -10,
  PFC_AUTH = -11,
  PFC_CONNECT = -12,
  PFC_UNAVAILABLE = -13,
  PFC_FULL = -14,
  PFC_TIMEOUT = -15,
  PFC_IO = -16,
  PFC_PROTOCOL = -17,
  PFC_SERVER = -18,
  PFC_FORKED = -19,
  PFC_WOULD_DEADLOCK = -20,
  PFC_LOADER = -21,
  PFC_OTHER = -22,
  PFC_OUT_OF_RESOURCES = -23,
  PFC_TLS = -24,
  PFC_CONFLICT = -100,
  PFC_BAD_ARGUMENT = -101,
  PFC_PANIC = -102,
};
typedef int32_t pfc_status;
typedef struct pfc_cache pfc_cache;
typedef struct pfc_call pfc_call;
typedef struct pfc_claim pfc_claim;
typedef struct pfc_load pfc_load;
typedef struct pfc_value {
  const void *data;
  size_t length;
  void *owner;
} pfc_value;
typedef struct pfc_key {
  const char *data;
  size_t length;
} pfc_key;
typedef struct pfc_expiry {
  int64_t ttl_ms;
  int64_t stale_ms;
  int64_t refresh_ahead_ms;
  double jitter;
} pfc_expiry;
typedef int (*pfc_loader)(void *user_data, struct pfc_load *load);
const char *pfc_status_name(int32_t status);
const char *pfc_error_message(void);
int pfc_error_is_transient(void);
pfc_status pfc_take_errors(struct pfc_value *json);
void pfc_value_free(struct pfc_value *value);
pfc_status pfc_open(const char *name,
                    size_t name_length,
                    const char *url,
                    size_t url_length,
                    const char *key_namespace,
                    size_t key_namespace_length,
                    struct pfc_cache **cache);
void pfc_call_cancel(struct pfc_call *call);
pfc_status pfc_get(const struct pfc_cache *cache,
                   const char *key,
                   size_t key_length,
                   struct pfc_value *value,
                   struct pfc_call **call);
pfc_status pfc_get_into(const struct pfc_cache *cache,
                        const char *key,
                        size_t key_length,
                        void *buffer,
                        size_t capacity,
                        size_t *length,
                        struct pfc_call **call);
pfc_status pfc_set(const struct pfc_cache *cache,
                   const char *key,
                   size_t key_length,
                   const void *value,
                   size_t value_length,
                   int64_t ttl_ms,
                   struct pfc_call **call);
pfc_status pfc_add(const struct pfc_cache *cache,
                   const char *key,
                   size_t key_length,
                   const void *value,
                   size_t value_length,
                   int64_t ttl_ms,
                   struct pfc_call **call);
pfc_status pfc_replace(const struct pfc_cache *cache,
                       const char *key,
                       size_t key_length,
                       const void *value,
                       size_t value_length,
                       int64_t ttl_ms,
                       struct pfc_call **call);
pfc_status pfc_delete(const struct pfc_cache *cache, const char *key, size_t key_length, struct pfc_call **call);
pfc_status pfc_exists(const struct pfc_cache *cache, const char *key, size_t key_length, struct pfc_call **call);
pfc_status pfc_touch(const struct pfc_cache *cache,
                     const char *key,
                     size_t key_length,
                     int64_t ttl_ms,
                     struct pfc_call **call);
pfc_status pfc_expires_in(const struct pfc_cache *cache,
                          const char *key,
                          size_t key_length,
                          int64_t *ttl_ms,
                          struct pfc_call **call);
pfc_status pfc_clear(const struct pfc_cache *cache, struct pfc_call **call);
pfc_status pfc_increment(const struct pfc_cache *cache,
                         const char *key,
                         size_t key_length,
                         int64_t by,
                         int64_t ttl_ms,
                         int64_t *result,
                         struct pfc_call **call);
pfc_status pfc_counter(const struct pfc_cache *cache,
                       const char *key,
                       size_t key_length,
                       int64_t *result,
                       struct pfc_call **call);
pfc_status pfc_get_many(const struct pfc_cache *cache,
                        const struct pfc_key *keys,
                        size_t count,
                        struct pfc_value *values,
                        pfc_status *statuses,
                        struct pfc_call **call);
pfc_status pfc_delete_many(const struct pfc_cache *cache,
                           const struct pfc_key *keys,
                           size_t count,
                           pfc_status *statuses,
                           struct pfc_call **call);
pfc_status pfc_fetch_begin(const struct pfc_cache *cache,
                           const char *key,
                           size_t key_length,
                           int64_t load_timeout_ms,
                           struct pfc_value *value,
                           struct pfc_claim **claim,
                           struct pfc_call **call);
pfc_status pfc_fetch_complete(struct pfc_claim *claim,
                              const void *value,
                              size_t value_length,
                              const struct pfc_expiry *expiry,
                              struct pfc_call **call);
pfc_status pfc_fetch_fail(struct pfc_claim *claim, struct pfc_value *old, struct pfc_call **call);
pfc_status pfc_load_give(struct pfc_load *load, const void *data, size_t length);
pfc_status pfc_fetch(const struct pfc_cache *cache,
                     const char *key,
                     size_t key_length,
                     const struct pfc_expiry *expiry,
                     int64_t load_timeout_ms,
                     pfc_loader loader,
                     void *user_data,
                     struct pfc_value *value);
pfc_status pfc_stats(const struct pfc_cache *cache, struct pfc_value *json);
pfc_status pfc_prometheus(struct pfc_value *text);
uint32_t pfc_abi_version(void);
pfc_status pfc_after_fork(struct pfc_value *report);
void prefork_cache_after_fork(void);
uint64_t pfc_generation(void);
