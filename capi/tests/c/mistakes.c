/* Invalid arguments and failures, and their messages: mistakes URL. */
#include "check.h"

#define KEY(text) PFC_LITERAL(text)

static void message_has(const char *part) {
  if (!strstr(pfc_error_message(), part)) FAIL("%s, without %s", pfc_error_message(), part);
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  CHECK(strcmp(pfc_error_message(), "") == 0 && !pfc_error_is_transient());
  pfc_cache *cache = open_as("mistakes", argv[1]), *other = cache;
  pfc_value value;
  pfc_claim *claim;
  size_t length;
  int64_t number;
  char byte;

  /* Opening. */
  EXPECT(PFC_CONFLICT, pfc_open(KEY("mistakes"), KEY("memory://"), NULL, 0, &other));
  CHECK(other == NULL);
  message_has("\"mistakes\" is open with another URL");
  EXPECT(PFC_CONFLICT, pfc_open(KEY("mistakes"), argv[1], strlen(argv[1]), KEY("shop"), &other));
  message_has("another namespace");
  EXPECT(PFC_BAD_URL, pfc_open(KEY("url"), KEY("gopher://secret:secret@host"), NULL, 0, &other));
  message_has("gopher");
  CHECK(!strstr(pfc_error_message(), "secret"));
  EXPECT(PFC_BAD_URL, pfc_open(KEY("url"), KEY("redis://user:secret@host?colour=red"), NULL, 0, &other));
  message_has("colour");
  CHECK(!strstr(pfc_error_message(), "secret"));
  EXPECT(PFC_BAD_ARGUMENT, pfc_open(KEY("\xFF"), KEY("memory://"), NULL, 0, &other));
  EXPECT(PFC_BAD_ARGUMENT, pfc_open(KEY("null"), NULL, 9, NULL, 0, &other));
  EXPECT(PFC_BAD_ARGUMENT, pfc_open(KEY("null"), KEY("memory://"), NULL, 0, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_open(KEY("parts"), KEY("memory://"), KEY("shop:"), &other));

  /* Keys. */
  EXPECT(PFC_BAD_KEY, pfc_get(cache, KEY("\xFF"), &value, NULL));
  message_has("not UTF-8");
  EXPECT(PFC_BAD_KEY, pfc_get(cache, KEY(""), &value, NULL));
  EXPECT(PFC_BAD_KEY, pfc_fetch_begin(cache, KEY(""), 0, &value, &claim, NULL));
  EXPECT(PFC_BAD_KEY, pfc_fetch_begin(cache, KEY("\xC3"), 0, &value, &claim, NULL));
  CHECK(claim == NULL);
  pfc_key keys[] = {{KEY("good")}, {KEY("\xFF")}};
  pfc_value values[2];
  EXPECT(PFC_BAD_KEY, pfc_get_many(cache, keys, 2, values, NULL, NULL));
  CHECK(values[0].data == NULL && values[1].data == NULL);

  /* Times. */
  EXPECT(PFC_BAD_TTL, pfc_set(cache, KEY("k"), KEY("v"), 0, NULL));
  EXPECT(PFC_BAD_TTL, pfc_set(cache, KEY("k"), KEY("v"), -2, NULL));
  EXPECT(PFC_BAD_TTL, pfc_set(cache, KEY("k"), KEY("v"), INT64_MAX, NULL));
  EXPECT(PFC_CLAIM, pfc_fetch_begin(cache, KEY("k"), 0, &value, &claim, NULL));
  const pfc_expiry refused[] = {
      {0, 0, 0, 0}, {1000, -1, 0, 0}, {1000, 0, 1000, 0}, {1000, 0, 0, 2}, {INT64_MAX, 0, 0, 0},
  };
  for (size_t at = 0; at < sizeof refused / sizeof *refused; at++)
    EXPECT(PFC_BAD_TTL, pfc_fetch_complete(claim, KEY("v"), &refused[at], NULL));
  EXPECT(PFC_OK, pfc_fetch_fail(claim, NULL, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_fetch_begin(cache, KEY("k"), -1, &value, &claim, NULL));

  /* Null pointers. */
  EXPECT(PFC_BAD_ARGUMENT, pfc_get(NULL, KEY("k"), &value, NULL));
  message_has("handle");
  EXPECT(PFC_BAD_ARGUMENT, pfc_get(cache, NULL, 1, &value, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_get(cache, KEY("k"), NULL, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_get_into(cache, KEY("k"), &byte, 1, NULL, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_get_into(cache, KEY("k"), NULL, 1, &length, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_set(cache, KEY("k"), NULL, 1, 1000, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_set(cache, KEY("k"), &byte, SIZE_MAX, 1000, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_counter(cache, KEY("k"), NULL, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_expires_in(cache, KEY("k"), NULL, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_get_many(cache, NULL, 1, values, NULL, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_get_many(cache, keys, 1, NULL, NULL, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_delete_many(cache, keys, SIZE_MAX, NULL, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_fetch_begin(cache, KEY("k"), 0, &value, NULL, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_fetch_complete(NULL, KEY("v"), NULL, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_fetch_fail(NULL, NULL, NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_fetch(cache, KEY("k"), NULL, 0, NULL, NULL, &value));
  EXPECT(PFC_BAD_ARGUMENT, pfc_fetch(cache, KEY("k"), &(pfc_expiry){.ttl_ms = 1000}, 0, NULL, NULL, &value));
  EXPECT(PFC_BAD_ARGUMENT, pfc_load_give(NULL, KEY("v")));
  EXPECT(PFC_BAD_ARGUMENT, pfc_stats(NULL, &value));
  EXPECT(PFC_BAD_ARGUMENT, pfc_prometheus(NULL));
  EXPECT(PFC_BAD_ARGUMENT, pfc_take_errors(NULL));
  pfc_call_cancel(NULL);

  /* A server that is down: the message belongs to this thread, and stays after calls that succeed. */
  pfc_cache *down = open_as("down", "redis://:secret@127.0.0.1:1");
  EXPECT(PFC_CONNECT, pfc_increment(down, KEY("k"), 1, 1000, &number, NULL));
  CHECK(pfc_error_is_transient());
  EXPECT(PFC_OK, pfc_set(cache, KEY("k"), KEY("v"), 1000, NULL));
  message_has("127.0.0.1:1");
  CHECK(!strstr(pfc_error_message(), "secret"));
  pid_t child = fork();
  if (child == 0) {
    message_has("127.0.0.1:1");
    _exit(0);
  }
  reap(child);

  /* A fetch still gets its value, and pfc_take_errors() returns the failure. */
  EXPECT(PFC_CLAIM, pfc_fetch_begin(down, KEY("k"), 0, &value, &claim, NULL));
  EXPECT(PFC_OK, pfc_fetch_complete(claim, KEY("v"), &(pfc_expiry){.ttl_ms = 1000}, NULL));
  child = fork();
  if (child == 0) {
    EXPECT(PFC_MISS, pfc_take_errors(&value));
    _exit(0);
  }
  reap(child);
  EXPECT(PFC_OK, pfc_take_errors(&value));
  CHECK(memmem(value.data, value.length, "\"cache\":\"down\"", 14));
  CHECK(memmem(value.data, value.length, "\"dropped\":0", 11));
  CHECK(!memmem(value.data, value.length, "secret", 6));
  pfc_value_free(&value);
  EXPECT(PFC_MISS, pfc_take_errors(&value));
  for (int round = 0; round < 200; round++) {
    EXPECT(PFC_CLAIM, pfc_fetch_begin(down, KEY("k"), 0, &value, &claim, NULL));
    EXPECT(PFC_OK, pfc_fetch_fail(claim, NULL, NULL));
  }
  EXPECT(PFC_OK, pfc_take_errors(&value));
  CHECK(value.length < 64 * 1024 && !memmem(value.data, value.length, "\"dropped\":0", 11));
  pfc_value_free(&value);
  CHECK(strcmp(pfc_status_name(-999), "unknown") == 0);
  return 0;
}
