// A preloaded library that lets no thread start where THREADS of them live already, as `ulimit -u` does for users other than root.
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include <atomic>

namespace {

std::atomic<long> alive{0};

struct Start {
  void* (*run)(void*);
  void* given;
};

void* run(void* given) {
  const Start start = *static_cast<Start*>(given);
  free(given);
  void* result = start.run(start.given);
  --alive;
  return result;
}

}  // namespace

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* with, void* (*start)(void*), void* given) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const Create next = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  static const long most = atol(getenv("THREADS"));
  if (++alive > most) {
    --alive;
    return EAGAIN;
  }
  Start* own = static_cast<Start*>(malloc(sizeof(Start)));
  *own = {start, given};
  return next(thread, with, run, own);
}
