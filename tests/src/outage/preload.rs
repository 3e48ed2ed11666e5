//! Libraries that, preloaded, make the program under test believe something that is not so: that its log was synced, that it is
//! another year, that it draws the numbers another process drew; and one that writes down what it does to its files.
//!
//! That needs a C compiler and a program that is linked dynamically, and no setting that could do harm in the field.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::disk::run;

/// SQLite's log was synced: the control that must lose. What `synchronous=NORMAL` would be, without a way to ask for it.
pub fn lying_library(folder: &Path) -> Result<PathBuf, String> {
    build(
        folder,
        "lying",
        r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
static int is_log(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path);
    return length > 4 && memcmp(path + length - 4, "-wal", 4) == 0;
}
int fdatasync(int file) {
    return is_log(file) ? 0 : ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(file);
}
int fsync(int file) {
    return is_log(file) ? 0 : ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file);
}
"#,
    )
}

/// The wall clock is off by the seconds in the file that `CLOCK_OFFSET` names (8 bytes, native order), at each moment anew.
/// The monotonic clock is not.
pub fn clock_library(folder: &Path) -> Result<PathBuf, String> {
    build(
        folder,
        "clock",
        r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long long *offset;
__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CLOCK_OFFSET");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = file < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) abort();
    offset = page;
}
int clock_gettime(clockid_t clock, struct timespec *to) {
    int failed = syscall(SYS_clock_gettime, clock, to);
    if (!failed && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) to->tv_sec += *offset;
    return failed;
}
int gettimeofday(struct timeval *to, void *zone) {
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    if (!failed) { to->tv_sec = now.tv_sec; to->tv_usec = now.tv_nsec / 1000; }
    return failed;
}
time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
"#,
    )
}

/// Every 8 random bytes are the same, until the file that `OWN_NUMBERS` names is there: epochs are such numbers.
pub fn same_numbers_library(folder: &Path) -> Result<PathBuf, String> {
    build(
        folder,
        "numbers",
        r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>
ssize_t getrandom(void *to, size_t length, unsigned flags) {
    const char *own = getenv("OWN_NUMBERS");
    if (length == 8 && own && access(own, F_OK) != 0) {
        memcpy(to, "snapshot", 8);
        return 8;
    }
    return syscall(SYS_getrandom, to, length, flags);
}
"#,
    )
}

/// Writes, lengths and syncs of files below the folder that `TAPED` names are recorded in the file that `TAPE` names, each after
/// it was done and before its caller knows: `bridge::torn` has the form.
pub fn recorder_library(folder: &Path) -> Result<PathBuf, String> {
    build(
        folder,
        "recorder",
        r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
static int tape = -1;
static const char *taped;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("TAPE");
    taped = getenv("TAPED");
    if (path) tape = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (tape < 0 || !taped) abort();
}
static void note(int file, uint64_t kind, uint64_t at, const void *data, uint64_t length) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path);
    size_t root = taped ? strlen(taped) : 0;
    if (size <= (ssize_t)root + 1 || memcmp(path, taped, root) != 0 || path[root] != '/') return;
    if (size > 4 && memcmp(path + size - 4, "-shm", 4) == 0) return;
    char *name = path + root + 1;
    uint64_t head[4] = {kind, size - root - 1, at, length};
    struct iovec parts[3] = {{head, sizeof head}, {name, head[1]}, {(void *)data, length}};
    if (writev(tape, parts, 3) != (ssize_t)(sizeof head + head[1] + length)) abort();
}
#define IN_ORDER(call, kind, at, data, length)     pthread_mutex_lock(&order);     long done = (call);     if (done >= 0) note(file, kind, at, data, length);     pthread_mutex_unlock(&order);     return done;
ssize_t pwrite64(int file, const void *data, size_t length, off_t at) {
    IN_ORDER(syscall(SYS_pwrite64, file, data, length, at), 0, at, data, done)
}
ssize_t pwrite(int file, const void *data, size_t length, off_t at) {
    IN_ORDER(syscall(SYS_pwrite64, file, data, length, at), 0, at, data, done)
}
int ftruncate64(int file, off_t length) {
    IN_ORDER(syscall(SYS_ftruncate, file, length), 1, length, "", 0)
}
int ftruncate(int file, off_t length) {
    IN_ORDER(syscall(SYS_ftruncate, file, length), 1, length, "", 0)
}
int fdatasync(int file) {
    IN_ORDER(syscall(SYS_fdatasync, file), 2, 0, "", 0)
}
int fsync(int file) {
    IN_ORDER(syscall(SYS_fsync, file), 2, 0, "", 0)
}
"#,
    )
}

fn build(folder: &Path, name: &str, code: &str) -> Result<PathBuf, String> {
    let (source, library) = (folder.join(format!("{name}.c")), folder.join(format!("{name}.so")));
    std::fs::write(&source, code).map_err(|error| error.to_string())?;
    run(Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source))?;
    Ok(library)
}
