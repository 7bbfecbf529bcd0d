/* An Apache module that counts requests in a cache: the master counts too, before it forks, each time that it is configured. */

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "httpd.h"
#include "http_config.h"
#include "http_log.h"
#include "http_protocol.h"
#include "ap_mpm.h"

bool prefork_cache_register(const char *url);
int64_t prefork_cache_count(const char *key);

static int configured(apr_pool_t *pool, apr_pool_t *log, apr_pool_t *temporary, server_rec *server)
{
    const char *url = getenv("CACHE_URL");
    if (url == NULL || !prefork_cache_register(url) || prefork_cache_count("configurations") < 1) {
        ap_log_error(APLOG_MARK, APLOG_ERR, 0, server, "the cache cannot be used");
        return HTTP_INTERNAL_SERVER_ERROR;
    }
    return OK;
}

/* Answers with the generation, the worker and the count. */
static int handle(request_rec *request)
{
    if (strcmp(request->handler, "prefork-cache") != 0) {
        return DECLINED;
    }
    int generation = 0;
    ap_mpm_query(AP_MPMQ_GENERATION, &generation);
    ap_set_content_type(request, "text/plain");
    ap_rprintf(request, "%d %ld %ld\n", generation, (long) getpid(), (long) prefork_cache_count("requests"));
    return OK;
}

static void register_hooks(apr_pool_t *pool)
{
    ap_hook_post_config(configured, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_handler(handle, NULL, NULL, APR_HOOK_MIDDLE);
}

AP_DECLARE_MODULE(prefork_cache) = {
    STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, register_hooks
};
