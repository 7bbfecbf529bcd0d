/* Fetches in two steps and with a callback: fetches URL. */
#include "check.h"

#include <pthread.h>

#define KEY(text) PFC_LITERAL(text)

static const pfc_expiry HOUR = {.ttl_ms = 3600000};
static const pfc_expiry SOON_STALE = {.ttl_ms = 50, .stale_ms = 3600000};

static int loads;

static int load(void *user_data, pfc_load *load) {
  loads++;
  return user_data ? (int)pfc_load_give(load, user_data, strlen(user_data)) : 1;
}

/* Forks in the middle of a load, as system() in a loader does. */
static int load_and_fork(void *user_data, pfc_load *load) {
  const pfc_cache *cache = user_data;
  pid_t child = fork();
  if (child == 0) {
    pfc_value value;
    EXPECT(PFC_MISS, pfc_get(cache, KEY("forking"), &value, NULL));
    _exit(0);
  }
  reap(child);
  CHECK(system("true") == 0);
  return (int)pfc_load_give(load, "forked", 6);
}

static void with_a_callback(const pfc_cache *cache) {
  pfc_value value;
  EXPECT(PFC_LOADER, pfc_fetch(cache, KEY("page"), &HOUR, 0, load, NULL, &value));
  CHECK(value.data == NULL && strstr(pfc_error_message(), "\"page\""));
  EXPECT(PFC_OK, pfc_fetch(cache, KEY("page"), &HOUR, 0, load, "loaded", &value));
  EXPECT_VALUE("loaded", value);
  EXPECT(PFC_OK, pfc_fetch(cache, KEY("page"), &HOUR, 0, load, "never", &value));
  EXPECT_VALUE("loaded", value);
  CHECK(loads == 2);
  EXPECT(PFC_OK, pfc_fetch(cache, KEY("forking"), &HOUR, 0, load_and_fork, (void *)cache, &value));
  EXPECT_VALUE("forked", value);
  EXPECT(PFC_OK, pfc_get(cache, KEY("forking"), &value, NULL));
  EXPECT_VALUE("forked", value);
}

static void in_two_steps(const pfc_cache *cache, pfc_call **call) {
  pfc_value value, old;
  pfc_claim *claim;
  EXPECT(PFC_CLAIM, pfc_fetch_begin(cache, KEY("k"), 5000, &value, &claim, call));
  CHECK(value.data == NULL);
  EXPECT(PFC_OK, pfc_fetch_fail(claim, &old, call));
  CHECK(old.data == NULL);
  EXPECT(PFC_CLAIM, pfc_fetch_begin(cache, KEY("k"), 5000, &value, &claim, call));
  EXPECT(PFC_OK, pfc_fetch_complete(claim, KEY("first"), &SOON_STALE, call));
  /* Fresh first; then one caller has to reload it. */
  pfc_status status;
  do {
    usleep(1000);
    status = pfc_fetch_begin(cache, KEY("k"), 5000, &value, &claim, call);
    if (status == PFC_OK) EXPECT_VALUE("first", value);
  } while (status == PFC_OK || status == PFC_AGAIN);
  CHECK(status == PFC_CLAIM);
  EXPECT_VALUE("first", value);
  pfc_claim *other;
  EXPECT(PFC_STALE, pfc_fetch_begin(cache, KEY("k"), 5000, &value, &other, call));
  CHECK(other == NULL);
  EXPECT_VALUE("first", value);
  EXPECT(PFC_OK, pfc_get(cache, KEY("k"), &value, call));
  EXPECT_VALUE("first", value);
  EXPECT(PFC_STALE, pfc_fetch_fail(claim, &old, call));
  EXPECT_VALUE("first", old);
  EXPECT(PFC_STALE, pfc_fetch_begin(cache, KEY("k"), 5000, &value, &other, call));
  EXPECT_VALUE("first", value);
  /* A delete revokes a load. */
  EXPECT(PFC_OK, pfc_delete(cache, KEY("k"), call));
  EXPECT(PFC_CLAIM, pfc_fetch_begin(cache, KEY("k"), 5000, &value, &claim, call));
  EXPECT(PFC_MISS, pfc_delete(cache, KEY("k"), call));
  EXPECT(PFC_OK, pfc_fetch_complete(claim, KEY("revoked"), &HOUR, call));
  EXPECT(PFC_MISS, pfc_get(cache, KEY("k"), &value, call));
  /* A null expiry: the value is not stored. */
  EXPECT(PFC_CLAIM, pfc_fetch_begin(cache, KEY("k"), 5000, &value, &claim, call));
  EXPECT(PFC_OK, pfc_fetch_complete(claim, KEY("passing"), NULL, call));
  EXPECT(PFC_MISS, pfc_get(cache, KEY("k"), &value, call));
}

/* An inherited claim does nothing in the child, and still belongs to the parent. */
static void across_a_fork(const pfc_cache *cache) {
  pfc_value value;
  pfc_claim *completed, *failed;
  EXPECT(PFC_CLAIM, pfc_fetch_begin(cache, KEY("completed"), 0, &value, &completed, NULL));
  EXPECT(PFC_CLAIM, pfc_fetch_begin(cache, KEY("failed"), 0, &value, &failed, NULL));
  pid_t child = fork();
  if (child == 0) {
    EXPECT(PFC_OK, pfc_fetch_complete(completed, KEY("child's"), &HOUR, NULL));
    EXPECT(PFC_OK, pfc_fetch_fail(failed, NULL, NULL));
    EXPECT(PFC_MISS, pfc_get(cache, KEY("completed"), &value, NULL));
    _exit(0);
  }
  reap(child);
  EXPECT(PFC_MISS, pfc_get(cache, KEY("completed"), &value, NULL));
  EXPECT(PFC_OK, pfc_fetch_complete(completed, KEY("parent's"), &HOUR, NULL));
  EXPECT(PFC_OK, pfc_fetch_complete(failed, KEY("parent's"), &HOUR, NULL));
  EXPECT(PFC_OK, pfc_get(cache, KEY("failed"), &value, NULL));
  EXPECT_VALUE("parent's", value);
}

struct waiting {
  const pfc_cache *cache;
  int again;
  int ready;
};

static void *wait_for_load(void *argument) {
  struct waiting *waiting = argument;
  pfc_call *call = NULL;
  pfc_value value;
  pfc_claim *claim;
  while (pfc_fetch_begin(waiting->cache, KEY("awaited"), 0, &value, &claim, &call) == PFC_AGAIN) {
    CHECK(call != NULL && value.data == NULL && claim == NULL);
    if (++waiting->again == 2) CHECK(write(waiting->ready, "!", 1) == 1);
  }
  CHECK(call == NULL && claim == NULL);
  EXPECT_VALUE("at last", value);
  return NULL;
}

/* A call that waits for another caller's load returns in slices. */
static void in_slices(const pfc_cache *cache) {
  int ready[2];
  char byte;
  pfc_value value;
  pfc_claim *claim;
  pthread_t thread;
  CHECK(pipe(ready) == 0);
  struct waiting waiting = {cache, 0, ready[1]};
  EXPECT(PFC_CLAIM, pfc_fetch_begin(cache, KEY("awaited"), 0, &value, &claim, NULL));
  CHECK(pthread_create(&thread, NULL, wait_for_load, &waiting) == 0);
  CHECK(read(ready[0], &byte, 1) == 1);
  EXPECT(PFC_OK, pfc_fetch_complete(claim, KEY("at last"), &HOUR, NULL));
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(waiting.again >= 2);
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  pfc_cache *cache = open_as("fetches", argv[1]);
  pfc_call *unfinished = NULL;
  with_a_callback(cache);
  in_two_steps(cache, NULL);
  in_two_steps(cache, &unfinished);
  CHECK(unfinished == NULL);
  across_a_fork(cache);
  in_slices(cache);
  return 0;
}
