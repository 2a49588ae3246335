/* A library for LD_PRELOAD that lets system calls of a program fail, so that tests can see what it makes of a full
 * disk, a file system that went away, or a clock that jumps. tests/it/faults.rs builds and uses it.
 *
 *   FAULTS_ROOT   only calls count that name a file below this folder, or use an open one
 *   FAULTS_CALLS  names of the calls that count, each after a comma: ",open,write" ("open" is for writing,
 *                 "openread" for reading)
 *   FAULTS_AT     the number of the first call that fails, from 1; 0 for none
 *   FAULTS_LAST   the number of the last call that fails
 *   FAULTS_ERROR  the error number; 0: the call does half of what it was asked for (write, read)
 *   FAULTS_THEN   the error number of the calls after the first that fails, if another one
 *   FAULTS_MADE   renames that fail are made all the same: the answer of a file server was lost
 *   FAULTS_LOG    a line "name path" is appended here for each call that counts
 *   FAULTS_CLOCK  seconds by which CLOCK_REALTIME is off, from its FAULTS_CLOCK_AT-th reading on; the sign
 *                 changes with every further reading if FAULTS_CLOCK_BOTH is set
 *   FAULTS_BOOT   the same for CLOCK_BOOTTIME: a machine that slept
 *   FAULTS_COARSE CLOCK_MONOTONIC has steps of so many milliseconds, so that most differences are 0
 *
 * rename() is also caught as a system call (seccomp), since some libraries do without the C library there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

/* Marks system calls that this library makes itself. */
#define OWN 0x6661756c74L

static const char *root, *calls;
static size_t root_length;
static long first, last, counted;
static int error_number, then_number, renames_are_made, log_file = -1;
static long clock_by, clock_from, clock_reads, boot_by, coarse_ms;
static int clock_both, ready;

static long number(const char *name) {
  const char *text = getenv(name);
  return text ? atol(text) : 0;
}

static int counts(const char *name) {
  char word[32];
  snprintf(word, sizeof word, ",%s,", name);
  return strstr(calls, word) != NULL;
}

static int below(const char *path) {
  char absolute[PATH_MAX];
  if (path[0] != '/') {
    if (!getcwd(absolute, sizeof absolute)) return 0;
    size_t length = strlen(absolute);
    snprintf(absolute + length, sizeof absolute - length, "/%s", path);
    path = absolute;
  }
  return strncmp(path, root, root_length) == 0;
}

/* What becomes of a call: it is made, made by half, or not made (the error number). */
enum { MADE = -1, HALF = 0 };

static int fate(const char *name, const char *path) {
  if (!ready || !counts(name) || !below(path)) return MADE;
  long number = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
  if (log_file >= 0) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%s %s\n", name, path);
    syscall(SYS_write, log_file, line, (size_t)length, 0L, 0L, OWN);
  }
  if (first <= 0 || number < first || number > last) return MADE;
  return number == first ? error_number : then_number;
}

static int fate_of_file(const char *name, int file) {
  if (!ready || !counts(name)) return MADE;
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  /* A pipe or a socket has no path. */
  if (length <= 0 || path[0] != '/') return MADE;
  path[length] = 0;
  return fate(name, path);
}

#define MAKE_OR_FAIL(fate, call)         \
  do {                                   \
    int becomes = fate;                  \
    if (becomes > 0) {                   \
      errno = becomes;                   \
      return -1;                         \
    }                                    \
    return call;                         \
  } while (0)

static const char *opened(int flags) {
  return (flags & O_ACCMODE) == O_RDONLY && !(flags & O_CREAT) ? "openread" : "open";
}

static int open_at(int folder, const char *path, int flags, mode_t mode) {
  MAKE_OR_FAIL(fate(opened(flags), path), (int)syscall(SYS_openat, folder, path, flags, mode));
}

#define MODE(flags)                                  \
  mode_t mode = 0;                                   \
  if (flags & (O_CREAT | __O_TMPFILE)) {             \
    va_list rest;                                    \
    va_start(rest, flags);                           \
    mode = va_arg(rest, mode_t);                     \
    va_end(rest);                                    \
  }

int open(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return open_at(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags) return open_at(folder, path, flags, mode); }

ssize_t write(int file, const void *bytes, size_t count) {
  int becomes = fate_of_file("write", file);
  if (becomes == HALF && count > 1) count /= 2;
  MAKE_OR_FAIL(becomes, syscall(SYS_write, file, bytes, count));
}

ssize_t writev(int file, const struct iovec *parts, int count) {
  MAKE_OR_FAIL(fate_of_file("write", file), syscall(SYS_writev, file, parts, count));
}

ssize_t read(int file, void *bytes, size_t count) {
  int becomes = fate_of_file("read", file);
  if (becomes == HALF && count > 1) count /= 2;
  MAKE_OR_FAIL(becomes, syscall(SYS_read, file, bytes, count));
}

int fsync(int file) { MAKE_OR_FAIL(fate_of_file("fsync", file), (int)syscall(SYS_fsync, file)); }
int fdatasync(int file) { MAKE_OR_FAIL(fate_of_file("fsync", file), (int)syscall(SYS_fdatasync, file)); }
int ftruncate(int file, off_t size) { MAKE_OR_FAIL(fate_of_file("truncate", file), (int)syscall(SYS_ftruncate, file, size)); }
int ftruncate64(int file, off64_t size) { MAKE_OR_FAIL(fate_of_file("truncate", file), (int)syscall(SYS_ftruncate, file, size)); }
int flock(int file, int operation) { MAKE_OR_FAIL(fate_of_file("lock", file), (int)syscall(SYS_flock, file, operation)); }
int mkdir(const char *path, mode_t mode) { MAKE_OR_FAIL(fate("mkdir", path), (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode)); }
int unlink(const char *path) { MAKE_OR_FAIL(fate("unlink", path), (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0)); }
int rmdir(const char *path) { MAKE_OR_FAIL(fate("unlink", path), (int)syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR)); }

int clock_gettime(clockid_t clock, struct timespec *time) {
  int result = (int)syscall(SYS_clock_gettime, clock, time);
  if (!ready || result != 0) return result;
  if (clock == CLOCK_REALTIME && clock_by) {
    long reads = __atomic_add_fetch(&clock_reads, 1, __ATOMIC_SEQ_CST);
    if (reads >= clock_from) time->tv_sec += clock_both && (reads - clock_from) % 2 ? -clock_by : clock_by;
  } else if (clock == CLOCK_BOOTTIME) {
    time->tv_sec += boot_by;
  } else if (clock == CLOCK_MONOTONIC && coarse_ms) {
    long ms = time->tv_sec * 1000 + time->tv_nsec / 1000000;
    ms -= ms % coarse_ms;
    time->tv_sec = ms / 1000;
    time->tv_nsec = ms % 1000 * 1000000;
  }
  return result;
}

#if defined(__x86_64__)
static void renamed(int signal, siginfo_t *info, void *context) {
  (void)signal;
  int saved = errno;
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  long call = info->si_syscall;
  long a = registers[REG_RDI], b = registers[REG_RSI], c = registers[REG_RDX], d = registers[REG_R10];
  long e = call == SYS_renameat2 ? registers[REG_R8] : 0;
  const char *to = (const char *)(call == SYS_rename ? b : d);
  long result;
  int becomes = fate("rename", to);
  if (becomes > 0 && !renames_are_made) {
    result = -becomes;
  } else {
    result = syscall(call, a, b, c, d, e, OWN);
    if (result < 0) result = -errno;
    if (becomes > 0) result = -becomes;
  }
  registers[REG_RAX] = result;
  errno = saved;
}

static void catch_renames(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = renamed;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSYS, &action, NULL);
#define ARGUMENT_5 (offsetof(struct seccomp_data, args) + 5 * 8)
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rename, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat2, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ARGUMENT_5),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OWN & 0xffffffff, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
  };
  struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}
#else
static void catch_renames(void) {}
int rename(const char *from, const char *to) { MAKE_OR_FAIL(fate("rename", to), (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0)); }
#endif

__attribute__((constructor)) static void begin(void) {
  root = getenv("FAULTS_ROOT");
  calls = getenv("FAULTS_CALLS");
  if (!root || !calls) return;
  root_length = strlen(root);
  first = number("FAULTS_AT");
  last = number("FAULTS_LAST");
  error_number = (int)number("FAULTS_ERROR");
  then_number = getenv("FAULTS_THEN") ? (int)number("FAULTS_THEN") : error_number;
  renames_are_made = getenv("FAULTS_MADE") != NULL;
  clock_by = number("FAULTS_CLOCK");
  clock_from = number("FAULTS_CLOCK_AT");
  clock_both = getenv("FAULTS_CLOCK_BOTH") != NULL;
  boot_by = number("FAULTS_BOOT");
  coarse_ms = number("FAULTS_COARSE");
  const char *log = getenv("FAULTS_LOG");
  if (log) log_file = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  catch_renames();
  ready = 1;
}
