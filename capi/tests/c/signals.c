/* A one-millisecond timer whose handler interrupts system calls: signals URL ROUNDS. No call fails. */
#include "check.h"

#include <signal.h>
#include <sys/time.h>

#define KEY(text) PFC_LITERAL(text)

static volatile sig_atomic_t signals;

static void handle(int signal) {
  (void)signal;
  signals++;
}

static int load(void *user_data, pfc_load *load) {
  (void)user_data;
  return (int)pfc_load_give(load, "loaded", 6);
}

static void use(const pfc_cache *cache, pfc_call **call, long round) {
  static char large[300000], found[sizeof large];
  const pfc_expiry expiry = {.ttl_ms = 60000};
  pfc_value value;
  size_t length;
  int64_t count;
  char key[32];
  size_t key_length = (size_t)snprintf(key, sizeof key, "page:%ld", round % 7);
  memset(large, 'a' + (int)(round % 26), sizeof large);
  EXPECT(PFC_OK, pfc_set(cache, KEY("large"), large, sizeof large, 60000, call));
  EXPECT(PFC_OK, pfc_get_into(cache, KEY("large"), found, sizeof found, &length, call));
  CHECK(length == sizeof large && memcmp(found, large, length) == 0);
  EXPECT(PFC_OK, pfc_increment(cache, KEY("n"), 1, 60000, &count, call));
  EXPECT(PFC_OK, pfc_fetch(cache, key, key_length, &expiry, 0, load, NULL, &value));
  EXPECT_VALUE("loaded", value);
  EXPECT(PFC_OK, pfc_delete(cache, key, key_length, call));
}

int main(int argc, char **argv) {
  CHECK(argc == 3);
  const long rounds = atol(argv[2]);
  struct sigaction action = {.sa_handler = handle};
  struct itimerval millisecond = {{0, 1000}, {0, 1000}};
  CHECK(sigaction(SIGALRM, &action, NULL) == 0);
  CHECK(setitimer(ITIMER_REAL, &millisecond, NULL) == 0);
  pfc_cache *cache = open_as("signals", argv[1]);
  pfc_call *unfinished = NULL;
  for (long round = 0; round < rounds; round++) {
    use(cache, round % 2 ? &unfinished : NULL, round);
    if (round % 10 == 0) { /* a child, which dials */
      pid_t child = fork();
      if (child == 0) {
        CHECK(setitimer(ITIMER_REAL, &millisecond, NULL) == 0);
        use(cache, NULL, round);
        _exit(signals == 0);
      }
      int ended;
      while (waitpid(child, &ended, 0) != child) {}
      CHECK(ended == 0);
    }
  }
  pfc_value errors;
  if (pfc_take_errors(&errors) != PFC_MISS) FAIL("%.*s", (int)errors.length, (const char *)errors.data);
  int64_t count;
  EXPECT(PFC_OK, pfc_counter(cache, KEY("n"), &count, NULL));
  CHECK(count == rounds + (rounds + 9) / 10);
  printf("%d\n", (int)signals);
  return 0;
}
