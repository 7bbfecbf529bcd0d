/* Calls to a paused server, in slices: slices URL. Writes a line when it waits, and reads one to continue. */
#include "check.h"

#define KEY(text) PFC_LITERAL(text)

static void print_and_wait(const char *line) {
  char reply[8];
  CHECK(write(1, line, strlen(line)) == (ssize_t)strlen(line));
  CHECK(read(0, reply, sizeof reply) > 0);
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  pfc_cache *cache = open_as("slices", argv[1]);
  pfc_call *increment = NULL, *get = NULL, *cancelled = NULL;
  pfc_value value;
  int64_t count = -7;
  char key[] = "n", held[] = "k";

  EXPECT(PFC_OK, pfc_set(cache, KEY("k"), KEY("v"), 60000, NULL));
  print_and_wait("stop\n");
  for (int slice = 0; slice < 3; slice++) {
    EXPECT(PFC_AGAIN, pfc_increment(cache, key, 1, 1, 60000, &count, &increment));
    EXPECT(PFC_AGAIN, pfc_get(cache, held, 1, &value, &get));
    EXPECT(PFC_AGAIN, pfc_get(cache, KEY("cancelled"), &value, &cancelled));
    CHECK(increment && get && cancelled && count == -7 && value.data == NULL);
    key[0] = held[0] = '!'; /* the first call copied it */
  }
  EXPECT(PFC_BAD_ARGUMENT, pfc_delete(cache, KEY("k"), &get));
  CHECK(get != NULL && strstr(pfc_error_message(), "delete cannot continue a call of read"));

  /* The calls belong to this process. */
  pid_t child = fork();
  if (child == 0) {
    EXPECT(PFC_FORKED, pfc_increment(cache, key, 1, 1, 60000, &count, &increment));
    EXPECT(PFC_FORKED, pfc_get(cache, held, 1, &value, &get));
    CHECK(increment == NULL && get == NULL);
    pfc_call_cancel(cancelled);
    _exit(0);
  }
  reap(child);

  pfc_call_cancel(cancelled);
  print_and_wait("continue\n");
  EXPECT(PFC_OK, pfc_increment(cache, key, 1, 1, 60000, &count, &increment));
  EXPECT(PFC_OK, pfc_get(cache, held, 1, &value, &get));
  CHECK(increment == NULL && get == NULL && count == 1);
  EXPECT_VALUE("v", value);
  EXPECT(PFC_OK, pfc_counter(cache, KEY("n"), &count, NULL));
  CHECK(count == 1); /* not 2: nothing was sent twice */
  return 0;
}
