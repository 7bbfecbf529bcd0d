/* Forks in every way that a host may, while four threads use the cache: forks URL ROUNDS. Each thread writes its own
 * values and reads them back; no call fails, in the parent or in any child. */
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>

static pfc_cache *cache;
static atomic_int is_over;
static atomic_long checked;

/* A call that bypasses the handlers of fork() leaves the allocator's locks in their current state, and the child must
 * not allocate. So the other threads pause during such a call. */
static pthread_rwlock_t pause_lock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

static void write_and_read_back(const char *who, long round) {
  char key[64], text[64], found[64];
  size_t length;
  int key_length = snprintf(key, sizeof key, "%s:%ld", who, round % 50);
  int text_length = snprintf(text, sizeof text, "%s wrote %ld", who, round);
  EXPECT(PFC_OK, pfc_set(cache, key, (size_t)key_length, text, (size_t)text_length, 60000, NULL));
  EXPECT(PFC_OK, pfc_get_into(cache, key, (size_t)key_length, found, sizeof found, &length, NULL));
  if (length != (size_t)text_length || memcmp(found, text, length) != 0)
    FAIL("%s read %.*s, but wrote %s", who, (int)length, found, text);
  checked++;
}

static void *use(void *name) {
  for (long round = 0; !is_over; round++) {
    CHECK(pthread_rwlock_rdlock(&pause_lock) == 0);
    write_and_read_back(name, round);
    CHECK(pthread_rwlock_unlock(&pause_lock) == 0);
  }
  return NULL;
}

static pid_t fork_without_handlers(int by_system_call) {
  CHECK(pthread_rwlock_wrlock(&pause_lock) == 0);
  pid_t child = by_system_call ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : _Fork();
  if (child != 0) CHECK(pthread_rwlock_unlock(&pause_lock) == 0);
  return child;
}

static void run_child(int number) {
  char who[32];
  alarm(60);
  snprintf(who, sizeof who, "child-%d", number);
  for (long round = 0; round < 3; round++) write_and_read_back(who, round);
  _exit(0);
}

int main(int argc, char **argv) {
  CHECK(argc == 3);
  const long rounds = atol(argv[2]);
  static char *names[] = {"thread-0", "thread-1", "thread-2", "thread-3"};
  pthread_t threads[4];
  cache = open_as("forks", argv[1]);
  for (int thread = 0; thread < 4; thread++)
    CHECK(pthread_create(&threads[thread], NULL, use, names[thread]) == 0);
  for (int round = 0; round < rounds; round++) {
    write_and_read_back("main", round);
    pid_t child;
    switch (round % 4) {
    case 0:
    case 1: /* without the hooks of a language's runtime */
      child = fork();
      break;
    case 2:
      child = fork_without_handlers(round % 8 == 2);
      break;
    default:
      CHECK(system("true") == 0);
      FILE *shell = popen("echo hello", "r");
      char line[16];
      CHECK(shell && fgets(line, sizeof line, shell) && strcmp(line, "hello\n") == 0 && pclose(shell) == 0);
      continue;
    }
    if (child == 0) run_child(round);
    reap(child);
  }
  is_over = 1;
  for (int thread = 0; thread < 4; thread++) CHECK(pthread_join(threads[thread], NULL) == 0);
  CHECK(checked > rounds);
  printf("%ld\n", (long)checked);
  return 0;
}
