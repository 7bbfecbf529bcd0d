/* A counter of visits, and a page that is rendered once a minute for all processes together.
 *
 *   cc quickstart.c $(pkg-config --cflags --libs prefork_cache) -o quickstart && ./quickstart redis://127.0.0.1:6379
 */
#include <inttypes.h>
#include <prefork_cache.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int render(void *user_data, pfc_load *load) {
  const char *name = user_data;
  char page[64];
  int length = snprintf(page, sizeof page, "<h1>hello, %s</h1>", name);
  return pfc_load_give(load, page, (size_t)length);
}

static int failed(const char *what, pfc_status status) {
  fprintf(stderr, "%s: %s: %s\n", what, pfc_status_name(status), pfc_error_message());
  return 1;
}

static int work(const pfc_cache *cache) {
  int64_t visits;
  pfc_status status = pfc_increment(cache, PFC_LITERAL("visits"), 1, 60000, &visits, NULL);
  if (status != PFC_OK) return failed("counting a visit", status);

  pfc_expiry expiry = {.ttl_ms = 60000, .stale_ms = 600000};
  pfc_value page;
  status = pfc_fetch(cache, PFC_LITERAL("page"), &expiry, 0, render, "world", &page);
  if (status < 0) return failed("rendering the page", status);
  printf("visit %" PRId64 ": %.*s\n", visits, (int)page.length, (const char *)page.data);
  pfc_value_free(&page);
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s URL, for example redis://127.0.0.1:6379\n", argv[0]);
    return 2;
  }
  pfc_cache *cache;
  pfc_status status = pfc_open(PFC_LITERAL("default"), argv[1], strlen(argv[1]), PFC_LITERAL("quickstart"), &cache);
  if (status != PFC_OK) return failed("opening the cache", status);

  if (work(cache) != 0) return 1; /* the master warms its cache */
  fflush(stdout);
  pid_t worker = fork(); /* no hook: the worker makes its own connection */
  if (worker == 0) return work(cache);
  int ended;
  if (worker < 0 || waitpid(worker, &ended, 0) != worker || ended != 0) return 1;
  return work(cache);
}
