/* Two copies of the library in one process, each loaded, unloaded and loaded again: copies URL LIBRARY COPY. */
#include "check.h"

#include <dirent.h>
#include <dlfcn.h>

struct copy {
  void *library;
  pfc_status (*open)(const char *, size_t, const char *, size_t, const char *, size_t, pfc_cache **);
  pfc_status (*increment)(const pfc_cache *, const char *, size_t, int64_t, int64_t, int64_t *, pfc_call **);
  uint64_t (*generation)(void);
  const char *(*error_message)(void);
  pfc_cache *cache;
};

static void *symbol(void *library, const char *name) {
  void *found = dlsym(library, name);
  if (!found) FAIL("%s", dlerror());
  return found;
}

static struct copy load(const char *path, const char *url) {
  struct copy copy = {.library = dlopen(path, RTLD_NOW | RTLD_LOCAL)};
  if (!copy.library) FAIL("%s", dlerror());
  *(void **)&copy.open = symbol(copy.library, "pfc_open");
  *(void **)&copy.increment = symbol(copy.library, "pfc_increment");
  *(void **)&copy.generation = symbol(copy.library, "pfc_generation");
  *(void **)&copy.error_message = symbol(copy.library, "pfc_error_message");
  if (copy.open("copy", 4, url, strlen(url), NULL, 0, &copy.cache) != PFC_OK) FAIL("%s", copy.error_message());
  return copy;
}

static int64_t count(const struct copy *copy) {
  int64_t counted;
  if (copy->increment(copy->cache, "n", 1, 1, 60000, &counted, NULL) != PFC_OK) FAIL("%s", copy->error_message());
  return counted;
}

static int descriptors(void) {
  DIR *directory = opendir("/proc/self/fd");
  int found = 0;
  CHECK(directory);
  while (readdir(directory)) found++;
  closedir(directory);
  return found;
}

int main(int argc, char **argv) {
  CHECK(argc == 4);
  int64_t expected = 0;
  int level = 0;
  for (int round = 0; round < 4; round++) {
    struct copy one = load(argv[2], argv[1]), two = load(argv[3], argv[1]);
    CHECK(one.open != two.open && one.cache != two.cache);
    CHECK(count(&one) == ++expected && count(&two) == ++expected);
    pid_t child = fork();
    if (child == 0) {
      alarm(60);
      CHECK(one.generation() == 2 && two.generation() == 2);
      CHECK(count(&one) == expected + 1 && count(&two) == expected + 2);
      CHECK(dlclose(one.library) == 0 && dlclose(two.library) == 0);
      struct copy again = load(argv[2], argv[1]);
      CHECK(count(&again) == expected + 3);
      child = fork();
      if (child == 0) {
        CHECK(count(&again) == expected + 4);
        _exit(0);
      }
      reap(child);
      _exit(0);
    }
    reap(child);
    expected += 4;
    CHECK(count(&one) == ++expected && count(&two) == ++expected);
    CHECK(dlclose(one.library) == 0 && dlclose(two.library) == 0);
    if (round == 0) level = descriptors();
    if (descriptors() != level) FAIL("%d descriptors, where there were %d", descriptors(), level);
  }
  return 0;
}
