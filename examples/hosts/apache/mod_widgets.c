/* /redis/KEY/VALUE stores a value, reads it back, and returns the process id and the value. */

#include <prefork_cache.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "httpd.h"

#include "apr_strings.h"
#include "http_config.h"
#include "http_log.h"
#include "http_protocol.h"

static pfc_cache *redis, *memcached;

/* Runs in the master, before it forks: the master makes its own connections. Apache calls this twice at its start and
 * again at each reload; pfc_open() returns the same handle. */
static int open_cache(pfc_cache **cache, const char *name, const char *url, server_rec *server) {
  if (url != NULL && pfc_open(name, strlen(name), url, strlen(url), NULL, 0, cache) == PFC_OK &&
      pfc_set(*cache, PFC_LITERAL("motd"), PFC_LITERAL("hello"), 60000, NULL) == PFC_OK) {
    return OK;
  }
  ap_log_error(APLOG_MARK, APLOG_ERR, 0, server, "opening the cache %s: %s", name, pfc_error_message());
  return HTTP_INTERNAL_SERVER_ERROR;
}

static int configured(apr_pool_t *pool, apr_pool_t *log, apr_pool_t *temporary, server_rec *server) {
  int outcome = open_cache(&redis, "redis", getenv("REDIS_URL"), server);
  return outcome == OK ? open_cache(&memcached, "memcached", getenv("MEMCACHED_URL"), server) : outcome;
}

static void after_fork(apr_pool_t *pool, server_rec *server) {
  pfc_value report;
  if (pfc_after_fork(&report) == PFC_OK) {
    ap_log_error(APLOG_MARK, APLOG_NOTICE, 0, server, "%.*s", (int)report.length, report.data);
    pfc_value_free(&report);
  }
}

static int handle(request_rec *request) {
  char *rest = NULL;
  const char *store = apr_strtok(apr_pstrdup(request->pool, request->uri), "/", &rest);
  const char *key = apr_strtok(NULL, "/", &rest), *value = apr_strtok(NULL, "/", &rest);
  if (strcmp(request->handler, "widgets") != 0 || value == NULL) return DECLINED;

  pfc_cache *cache = strcmp(store, "redis") == 0 ? redis : memcached;
  pfc_value read;
  if (pfc_set(cache, key, strlen(key), value, strlen(value), 60000, NULL) != PFC_OK ||
      pfc_get(cache, key, strlen(key), &read, NULL) != PFC_OK) {
    ap_log_rerror(APLOG_MARK, APLOG_ERR, 0, request, "%s: %s", key, pfc_error_message());
    return HTTP_INTERNAL_SERVER_ERROR;
  }
  ap_set_content_type(request, "text/plain");
  ap_rprintf(request, "%ld ", (long)getpid());
  ap_rwrite(read.data, (int)read.length, request);
  pfc_value_free(&read);
  return OK;
}

static void register_hooks(apr_pool_t *pool) {
  ap_hook_post_config(configured, NULL, NULL, APR_HOOK_MIDDLE);
  ap_hook_child_init(after_fork, NULL, NULL, APR_HOOK_MIDDLE); /* the one line */
  ap_hook_handler(handle, NULL, NULL, APR_HOOK_MIDDLE);
}

AP_DECLARE_MODULE(widgets) = {STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, register_hooks, 0};
