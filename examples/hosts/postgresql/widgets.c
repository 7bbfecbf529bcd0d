/* answer('/redis/KEY/VALUE') stores a value, reads it back, and returns the process id and the value. */

#include "postgres.h"

#include <prefork_cache.h>
#include <unistd.h>

#include "fmgr.h"
#include "utils/builtins.h"

PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(answer);
void _PG_init(void);

static pfc_cache *redis, *memcached;

/* PostgreSQL raises errors with longjmp: never while a frame of the library is on the stack. */
static void check(pfc_status status) {
  if (status != PFC_OK) ereport(ERROR, errmsg("the cache: %s: %s", pfc_status_name(status), pfc_error_message()));
}

static pfc_cache *open_cache(const char *name, const char *url) {
  pfc_cache *cache;
  if (url == NULL) ereport(ERROR, errmsg("no URL for %s", name));
  check(pfc_open(name, strlen(name), url, strlen(url), NULL, 0, &cache));
  check(pfc_set(cache, PFC_LITERAL("motd"), PFC_LITERAL("hello"), 60000, NULL));
  return cache;
}

/* Runs in the postmaster, before it forks: the postmaster makes its own connections. */
void _PG_init(void) {
  redis = open_cache("redis", getenv("REDIS_URL"));
  memcached = open_cache("memcached", getenv("MEMCACHED_URL"));
}

Datum answer(PG_FUNCTION_ARGS) {
  char *rest = text_to_cstring(PG_GETARG_TEXT_PP(0));
  const char *store = strtok_r(rest, "/", &rest), *key = strtok_r(NULL, "/", &rest), *value = rest;
  pfc_cache *cache = store != NULL && strcmp(store, "redis") == 0 ? redis : memcached;
  pfc_value read;
  char *body;

  if (key == NULL) ereport(ERROR, errmsg("expected a path /STORE/KEY/VALUE"));
  check(pfc_set(cache, key, strlen(key), value, strlen(value), 60000, NULL));
  check(pfc_get(cache, key, strlen(key), &read, NULL));
  body = psprintf("%d %.*s", (int)getpid(), (int)read.length, read.data);
  pfc_value_free(&read);
  PG_RETURN_TEXT_P(cstring_to_text(body));
}
