/* Helpers of the test programs. */
#ifndef CHECK_H
#define CHECK_H

#include <prefork_cache.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define FAIL(...)                                                                                                      \
  do {                                                                                                                 \
    fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                                                    \
    fprintf(stderr, __VA_ARGS__);                                                                                      \
    fprintf(stderr, "\n");                                                                                             \
    _exit(1);                                                                                                          \
  } while (0)

#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    if (!(condition)) FAIL("%s", #condition);                                                                          \
  } while (0)

/* Checks the status of a call, which is repeated until it is finished. */
#define EXPECT(expected, call)                                                                                         \
  do {                                                                                                                 \
    pfc_status status_;                                                                                                \
    do status_ = (call);                                                                                               \
    while (status_ == PFC_AGAIN && (expected) != PFC_AGAIN);                                                           \
    if (status_ != (expected))                                                                                         \
      FAIL("%s: %s: %s", #call, pfc_status_name(status_), pfc_error_message());                                        \
  } while (0)

static inline pfc_cache *open_as(const char *name, const char *url) {
  pfc_cache *cache;
  EXPECT(PFC_OK, pfc_open(name, strlen(name), url, strlen(url), NULL, 0, &cache));
  return cache;
}

static inline int is_value(const pfc_value *value, const char *text) {
  return value->data && value->length == strlen(text) && memcmp(value->data, text, value->length) == 0;
}

/* Checks a value, and frees it. */
#define EXPECT_VALUE(text, value)                                                                                      \
  do {                                                                                                                 \
    if (!is_value(&(value), text))                                                                                     \
      FAIL("%.*s, not %s", (int)(value).length, (const char *)(value).data, text);                                     \
    pfc_value_free(&(value));                                                                                          \
  } while (0)

static inline void reap(pid_t child) {
  int ended;
  CHECK(child > 0);
  CHECK(waitpid(child, &ended, 0) == child);
  if (ended != 0) FAIL("a child ended with %x", (unsigned)ended);
}

#endif
