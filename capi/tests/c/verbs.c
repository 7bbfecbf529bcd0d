/* Every operation against a real server, waiting and in slices: verbs URL. */
#include "check.h"

#define KEY(text) PFC_LITERAL(text)
#define MINUTE 60000

static void entries(const pfc_cache *cache, pfc_call **call) {
  pfc_value value;
  size_t length;
  char buffer[8];
  int64_t ttl;

  EXPECT(PFC_OK, pfc_clear(cache, call));
  EXPECT(PFC_MISS, pfc_get(cache, KEY("k"), &value, call));
  CHECK(value.data == NULL && value.length == 0);
  EXPECT(PFC_MISS, pfc_replace(cache, KEY("k"), KEY("never"), MINUTE, call));
  EXPECT(PFC_OK, pfc_set(cache, KEY("k"), KEY("hello"), MINUTE, call));
  EXPECT(PFC_MISS, pfc_add(cache, KEY("k"), KEY("never"), MINUTE, call));
  EXPECT(PFC_OK, pfc_get(cache, KEY("k"), &value, call));
  EXPECT_VALUE("hello", value);
  pfc_value_free(&value);
  pfc_value_free(NULL);
  EXPECT(PFC_OK, pfc_replace(cache, KEY("k"), KEY("a\0b"), MINUTE, call));
  memset(buffer, '.', sizeof buffer);
  EXPECT(PFC_OK, pfc_get_into(cache, KEY("k"), buffer, 3, &length, call));
  CHECK(length == 3 && memcmp(buffer, "a\0b.....", 8) == 0);
  EXPECT(PFC_TOO_SMALL, pfc_get_into(cache, KEY("k"), buffer, 2, &length, call));
  CHECK(length == 3 && memcmp(buffer, "a\0b.....", 8) == 0);
  EXPECT(PFC_MISS, pfc_get_into(cache, KEY("none"), NULL, 0, &length, call));
  CHECK(length == 0);

  EXPECT(PFC_OK, pfc_exists(cache, KEY("k"), call));
  EXPECT(PFC_OK, pfc_expires_in(cache, KEY("k"), &ttl, call));
  CHECK(ttl > MINUTE / 2 && ttl <= MINUTE);
  EXPECT(PFC_OK, pfc_touch(cache, KEY("k"), PFC_NEVER, call));
  EXPECT(PFC_OK, pfc_expires_in(cache, KEY("k"), &ttl, call));
  CHECK(ttl == PFC_NEVER);
  EXPECT(PFC_OK, pfc_delete(cache, KEY("k"), call));
  EXPECT(PFC_MISS, pfc_delete(cache, KEY("k"), call));
  EXPECT(PFC_MISS, pfc_exists(cache, KEY("k"), call));
  EXPECT(PFC_MISS, pfc_touch(cache, KEY("k"), MINUTE, call));
  EXPECT(PFC_MISS, pfc_expires_in(cache, KEY("k"), &ttl, call));

  EXPECT(PFC_OK, pfc_set(cache, KEY("empty"), NULL, 0, PFC_NEVER, call));
  EXPECT(PFC_OK, pfc_get(cache, KEY("empty"), &value, call));
  CHECK(value.data != NULL && value.length == 0);
  pfc_value_free(&value);
}

static void counters(const pfc_cache *cache, pfc_call **call) {
  int64_t count = -7;
  EXPECT(PFC_MISS, pfc_counter(cache, KEY("n"), &count, call));
  CHECK(count == -7);
  EXPECT(PFC_OK, pfc_increment(cache, KEY("n"), 3, MINUTE, &count, call));
  CHECK(count == 3);
  EXPECT(PFC_OK, pfc_increment(cache, KEY("n"), -1, MINUTE, NULL, call));
  EXPECT(PFC_OK, pfc_counter(cache, KEY("n"), &count, call));
  CHECK(count == 2);
  EXPECT(PFC_OK, pfc_set(cache, KEY("n"), KEY("no number"), MINUTE, call));
  EXPECT(PFC_NOT_A_NUMBER, pfc_increment(cache, KEY("n"), 1, MINUTE, &count, call));
  CHECK(!pfc_error_is_transient());
}

static void many(const pfc_cache *cache, pfc_call **call) {
  const pfc_key keys[] = {{KEY("one")}, {KEY("none")}, {KEY("two")}};
  pfc_value values[3];
  pfc_status statuses[3];

  EXPECT(PFC_OK, pfc_set(cache, KEY("one"), KEY("1"), MINUTE, call));
  EXPECT(PFC_OK, pfc_set(cache, KEY("two"), KEY("2"), MINUTE, call));
  EXPECT(PFC_OK, pfc_get_many(cache, keys, 3, values, statuses, call));
  CHECK(statuses[0] == PFC_OK && statuses[1] == PFC_MISS && statuses[2] == PFC_OK);
  CHECK(values[1].data == NULL);
  EXPECT_VALUE("1", values[0]);
  EXPECT_VALUE("2", values[2]);
  EXPECT(PFC_OK, pfc_delete_many(cache, keys, 3, statuses, call));
  CHECK(statuses[0] == PFC_OK && statuses[1] == PFC_MISS && statuses[2] == PFC_OK);
  EXPECT(PFC_OK, pfc_get_many(cache, keys, 3, values, NULL, call));
  CHECK(values[0].data == NULL && values[2].data == NULL);
  EXPECT(PFC_OK, pfc_get_many(cache, NULL, 0, NULL, NULL, call));
  EXPECT(PFC_OK, pfc_delete_many(cache, NULL, 0, NULL, call));
}

static void namespaces(const char *url) {
  pfc_cache *all = open_as("all", url), *part, *again;
  pfc_value value;
  EXPECT(PFC_OK, pfc_open(KEY("part"), url, strlen(url), KEY("shop:v2"), &part));
  EXPECT(PFC_OK, pfc_open(KEY("part"), url, strlen(url), KEY("shop:v2"), &again));
  CHECK(again == part);
  EXPECT(PFC_OK, pfc_set(part, KEY("k"), KEY("inside"), MINUTE, NULL));
  EXPECT(PFC_OK, pfc_set(all, KEY("k"), KEY("outside"), MINUTE, NULL));
  if (strncmp(url, "memory", 6) != 0) { /* each handle has its own memory */
    EXPECT(PFC_OK, pfc_get(all, KEY("shop:v2:k"), &value, NULL));
    EXPECT_VALUE("inside", value);
  }
  EXPECT(PFC_OK, pfc_clear(part, NULL));
  EXPECT(PFC_MISS, pfc_exists(part, KEY("k"), NULL));
  EXPECT(PFC_OK, pfc_exists(all, KEY("k"), NULL));
}

static void reports(const pfc_cache *cache) {
  pfc_value text;
  EXPECT(PFC_OK, pfc_stats(cache, &text));
  CHECK(memmem(text.data, text.length, "\"hits\":", 7) && memmem(text.data, text.length, "\"servers\":[", 11));
  pfc_value_free(&text);
  EXPECT(PFC_OK, pfc_prometheus(&text));
  CHECK(memmem(text.data, text.length, "\nprefork_cache_hits_total{cache=\"verbs\"} ", 41));
  pfc_value_free(&text);
  EXPECT(PFC_MISS, pfc_take_errors(&text));
  EXPECT(PFC_OK, pfc_after_fork(&text));
  CHECK(text.length > 0);
  pfc_value_free(&text);
  EXPECT(PFC_OK, pfc_after_fork(NULL));
  prefork_cache_after_fork();
  CHECK(pfc_generation() == 1 && pfc_abi_version() >= PFC_ABI_VERSION);
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  pfc_cache *cache = open_as("verbs", argv[1]);
  CHECK(open_as("verbs", argv[1]) == cache);
  pfc_call *unfinished = NULL, **ways[] = {NULL, &unfinished};
  for (int way = 0; way < 2; way++) {
    entries(cache, ways[way]);
    counters(cache, ways[way]);
    many(cache, ways[way]);
    CHECK(unfinished == NULL);
  }
  namespaces(argv[1]);
  reports(cache);
  return 0;
}
