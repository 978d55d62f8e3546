// A preloaded library that numbers the file-system calls below a folder and lets one of them fail, or ends the process there.
//
//   FAULTS_ROOT    the folder
//   FAULTS_COUNT   a file whose length becomes the number of calls (one byte each)
//   FAULTS_AT      the call, from 1; none for counting alone
//   FAULTS_DO      kill (before the call), TERM (a signal before the call), or the number of an error that the call gives
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <string>

namespace {

template <class F>
F next(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

std::atomic<long> calls{0};

std::string link_of(const std::string& link) {
  char buffer[PATH_MAX];
  const ssize_t n = syscall(SYS_readlink, link.c_str(), buffer, sizeof buffer);
  return n < 0 ? "" : std::string(buffer, n);
}

std::string of_fd(int fd) { return link_of("/proc/self/fd/" + std::to_string(fd)); }

std::string of_path(int at, const char* path) {
  if (!path) return "";
  if (path[0] == '/') return path;
  return (at == AT_FDCWD ? link_of("/proc/self/cwd") : of_fd(at)) + "/" + path;
}

// Whether this call is to fail; the process may end here.
bool fails(const char* what, const std::string& path) {
  static const char* root = getenv("FAULTS_ROOT");
  static const char* count = getenv("FAULTS_COUNT");
  static const long at = getenv("FAULTS_AT") ? atol(getenv("FAULTS_AT")) : 0;
  static const std::string action = getenv("FAULTS_DO") ? getenv("FAULTS_DO") : "";
  if (!root || path.rfind(root, 0) != 0) return false;
  const long now = ++calls;
  if (count) {
    static const int file = syscall(SYS_openat, AT_FDCWD, count, O_CREAT | O_WRONLY | O_APPEND, 0644);
    syscall(SYS_write, file, ".", 1);
  }
  if (now != at) return false;
  dprintf(2, "fault: %s at call %ld, %s %s\n", action.c_str(), now, what, path.c_str());
  if (action == "kill") syscall(SYS_kill, getpid(), SIGKILL);
  if (action == "TERM") syscall(SYS_kill, getpid(), SIGTERM);
  if (action == "kill" || action == "TERM") return false;
  errno = atoi(action.c_str());
  return true;
}

mode_t mode_of(int flags, va_list list) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; }

}  // namespace

extern "C" {

#define OPEN(name)                                                              \
  int name(const char* path, int flags, ...) {                                  \
    va_list list;                                                               \
    va_start(list, flags);                                                      \
    const mode_t mode = mode_of(flags, list);                                   \
    va_end(list);                                                               \
    if (fails(#name, of_path(AT_FDCWD, path))) return -1;                       \
    return next<int (*)(const char*, int, mode_t)>(#name)(path, flags, mode);   \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                    \
  int name(int at, const char* path, int flags, ...) {                                  \
    va_list list;                                                                       \
    va_start(list, flags);                                                              \
    const mode_t mode = mode_of(flags, list);                                           \
    va_end(list);                                                                       \
    if (fails(#name, of_path(at, path))) return -1;                                     \
    return next<int (*)(int, const char*, int, mode_t)>(#name)(at, path, flags, mode);  \
  }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void* data, size_t n) {
  if (fd > 2 && fails("write", of_fd(fd))) return -1;
  return next<ssize_t (*)(int, const void*, size_t)>("write")(fd, data, n);
}

ssize_t writev(int fd, const iovec* parts, int n) {
  if (fd > 2 && fails("writev", of_fd(fd))) return -1;
  return next<ssize_t (*)(int, const iovec*, int)>("writev")(fd, parts, n);
}

ssize_t read(int fd, void* data, size_t n) {
  if (fd > 2 && fails("read", of_fd(fd))) return -1;
  return next<ssize_t (*)(int, void*, size_t)>("read")(fd, data, n);
}

int fsync(int fd) { return fails("fsync", of_fd(fd)) ? -1 : next<int (*)(int)>("fsync")(fd); }

int ftruncate64(int fd, off64_t n) {
  return fails("ftruncate", of_fd(fd)) ? -1 : next<int (*)(int, off64_t)>("ftruncate64")(fd, n);
}

int rename(const char* from, const char* to) {
  if (fails("rename", of_path(AT_FDCWD, to))) return -1;
  return next<int (*)(const char*, const char*)>("rename")(from, to);
}

int renameat2(int from_at, const char* from, int to_at, const char* to, unsigned flags) {
  if (fails("renameat2", of_path(to_at, to))) return -1;
  return next<int (*)(int, const char*, int, const char*, unsigned)>("renameat2")(from_at, from, to_at, to, flags);
}

int unlink(const char* path) {
  return fails("unlink", of_path(AT_FDCWD, path)) ? -1 : next<int (*)(const char*)>("unlink")(path);
}

int unlinkat(int at, const char* path, int flags) {
  return fails("unlinkat", of_path(at, path)) ? -1 : next<int (*)(int, const char*, int)>("unlinkat")(at, path, flags);
}

int rmdir(const char* path) {
  return fails("rmdir", of_path(AT_FDCWD, path)) ? -1 : next<int (*)(const char*)>("rmdir")(path);
}

int mkdir(const char* path, mode_t mode) {
  return fails("mkdir", of_path(AT_FDCWD, path)) ? -1 : next<int (*)(const char*, mode_t)>("mkdir")(path, mode);
}

}  // extern "C"
