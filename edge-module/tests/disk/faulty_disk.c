/* A disk that remembers what was done to it, or that misbehaves: preloaded into a program under test.
 *
 *     cc -shared -fPIC -O2 -Wall -Wextra -o faulty_disk.so faulty_disk.c -ldl -pthread
 *     LD_PRELOAD=faulty_disk.so DISK_ROOT=/folder DISK_CONTROL=/file [DISK_LOG=/file] program
 *
 * It stands between the program and the C library for every call that changes something at or below DISK_ROOT, an
 * absolute path without links, and leaves all else alone. What it does not see: calls that the C library makes itself
 * (stdio), mappings, copies of descriptors, system calls made without the C library. Rust's standard library and sled 0.34
 * use none of these for files that they write (strace shows open, openat, write, pwrite64, ftruncate, fsync, fdatasync,
 * sync_file_range, mkdir, rename, unlink, unlinkat and rmdir).
 *
 * DISK_LOG: each change is carried out and appended to this file under one lock, so that its order is the order of
 * execution. Calls of fsync are logged and not made: the log decides what is durable. A record, little endian:
 *
 *     kind u8 | handle u64 | offset u64 | length u32 | length u32 | bytes | bytes
 *
 *     'O' opened:    handle, 1 created + 2 emptied, path                    'W' written:   handle, offset, bytes
 *     'T' cut:       handle, new length                                     'S' synced:    handle
 *     'M' folder made: path      'R' renamed: path, new path      'U' unlinked: path      'D' folder removed: path
 *     'A' marked:    text (the program opened /.disk-mark/<text>, which never exists)
 *
 * Handles are numbers of openings, never given twice. /.disk-mark/die ends the process by SIGKILL between two records.
 *
 * DISK_CONTROL: 16 numbers of 8 bytes, native order, mapped by this and by the test: see `enum word`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define DESCRIPTORS_MAX 65536
#define FOLDER_BYTES 4096
#define MARK "/.disk-mark/"
#define STALL_POLL_MICROS 500

/* The words of the control file. The last three are written here, all others by the test. */
enum word {
    SYNC_FAILS,      /* 1: fsync, fdatasync and sync_file_range fail with EIO */
    WRITE_FAILS,     /* 1: write and pwrite fail with EIO */
    FAILS_AFTER,     /* the two above take effect after so many further calls of their kind */
    QUOTA_BYTES,     /* 0: none. Files below the root may have so many bytes together, folders counting 4096 */
    READ_ONLY,       /* 1: everything that changes something fails with EROFS */
    STALL,           /* 1: everything that changes something waits until it is 0 */
    FORGET_FILES,    /* 1: fsync and fdatasync of files are not logged, as if the program had left them out */
    FORGET_FOLDERS,  /* 1: fsync of a folder is not logged */
    WORD_UNUSED_1,
    WORD_UNUSED_2,
    WORD_UNUSED_3,
    WORD_UNUSED_4,
    FAILED_CALLS,    /* calls that were made to fail */
    STALLED_CALLS,   /* calls that wait now */
    USED_BYTES,      /* against the quota, once one was set */
    CHANGES,         /* changes carried out */
    WORDS
};

static char root[PATH_MAX];
static size_t root_length;
static _Atomic uint64_t *control;
static _Atomic uint64_t no_control[WORDS];
static int log_descriptor = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t started = PTHREAD_ONCE_INIT;
static uint64_t handles = 1;
static int is_counted;

/* What is open: nothing, or its handle and path. Written under the lock; looked at without it by the owner of the descriptor. */
static struct {
    _Atomic uint64_t handle;
    char *path;
} open_files[DESCRIPTORS_MAX];

static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
static int (*real_ftruncate)(int, off64_t);
static int (*real_fallocate)(int, int, off64_t, off64_t);
static int (*real_renameat)(int, const char *, int, const char *);
static int (*real_renameat2)(int, const char *, int, const char *, unsigned);
static int (*real_unlinkat)(int, const char *, int);
static int (*real_mkdirat)(int, const char *, mode_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_sync_file_range)(int, off64_t, off64_t, unsigned);

static void die(const char *what) {
    fprintf(stderr, "faulty_disk: %s: %s\n", what, strerror(errno));
    abort();
}

static void *symbol(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) die(name);
    return found;
}

static void start(void) {
    const char *folder = getenv("DISK_ROOT"), *control_path = getenv("DISK_CONTROL"), *log_path = getenv("DISK_LOG");
    real_open = symbol("open64");
    real_openat = symbol("openat64");
    real_close = symbol("close");
    real_write = symbol("write");
    real_writev = symbol("writev");
    real_pwrite = symbol("pwrite64");
    real_ftruncate = symbol("ftruncate64");
    real_fallocate = symbol("fallocate64");
    real_renameat = symbol("renameat");
    real_renameat2 = symbol("renameat2");
    real_unlinkat = symbol("unlinkat");
    real_mkdirat = symbol("mkdirat");
    real_fsync = symbol("fsync");
    real_fdatasync = symbol("fdatasync");
    real_sync_file_range = symbol("sync_file_range");
    control = no_control;
    if (!folder) return;
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    if (control_path) {
        int descriptor = real_open(control_path, O_RDWR | O_CLOEXEC);
        void *mapped = MAP_FAILED;
        if (descriptor >= 0)
            mapped = mmap(NULL, WORDS * sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
        if (mapped == MAP_FAILED) die(control_path);
        real_close(descriptor);
        control = mapped;
    }
    if (log_path) {
        log_descriptor = real_open(log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
        if (log_descriptor < 0) die(log_path);
        /* Handles of the processes that write to one log must differ. */
        handles = (uint64_t)getpid() << 32 | 1;
    }
}

__attribute__((constructor)) static void begin(void) { pthread_once(&started, start); }

/* ---- what is watched ---- */

/* Writes the absolute path to `buffer` and says whether it is at or below the root. */
static int is_watched(int folder, const char *path, char *buffer) {
    pthread_once(&started, start);
    if (!root_length || !path) return 0;
    if (path[0] == '/') {
        if (strlen(path) >= PATH_MAX) return 0;
        strcpy(buffer, path);
    } else if (folder == AT_FDCWD) {
        if (!getcwd(buffer, PATH_MAX) || strlen(buffer) + strlen(path) + 2 > PATH_MAX) return 0;
        strcat(strcat(buffer, "/"), path);
    } else {
        if (folder < 0 || folder >= DESCRIPTORS_MAX || !open_files[folder].handle) return 0;
        if (strlen(open_files[folder].path) + strlen(path) + 2 > PATH_MAX) return 0;
        strcpy(buffer, open_files[folder].path);
        strcat(strcat(buffer, "/"), path);
    }
    size_t length = strlen(buffer);
    while (length > 1 && buffer[length - 1] == '/') buffer[--length] = 0;
    return !strncmp(buffer, root, root_length) && (buffer[root_length] == '/' || !buffer[root_length]);
}

static uint64_t handle_of(int descriptor) {
    pthread_once(&started, start);
    return descriptor >= 0 && descriptor < DESCRIPTORS_MAX ? open_files[descriptor].handle : 0;
}

/* ---- the log ---- */

static void put(const void *bytes, size_t length) {
    const char *at = bytes;
    while (length) {
        ssize_t written = real_write(log_descriptor, at, length);
        if (written < 0 && errno != EINTR) die("writing the log");
        if (written > 0) at += written, length -= (size_t)written;
    }
}

/* Under the lock. */
static void record(char kind, uint64_t handle, uint64_t offset, const void *first, size_t first_length,
                   const void *second, size_t second_length) {
    control[CHANGES]++;
    if (log_descriptor < 0) return;
    int saved = errno;
    uint32_t lengths[2] = {(uint32_t)first_length, (uint32_t)second_length};
    char head[25];
    head[0] = kind;
    memcpy(head + 1, &handle, 8);
    memcpy(head + 9, &offset, 8);
    memcpy(head + 17, lengths, 8);
    struct iovec parts[3] = {{head, sizeof head}, {(void *)first, first_length}, {(void *)second, second_length}};
    size_t total = sizeof head + first_length + second_length;
    ssize_t written = real_writev(log_descriptor, parts, 3);
    if (written < 0) die("writing the log");
    for (int part = 0; (size_t)written < total && part < 3; part++) {
        size_t done = (size_t)written < parts[part].iov_len ? (size_t)written : parts[part].iov_len;
        written -= (ssize_t)done, total -= done;
        put((char *)parts[part].iov_base + done, parts[part].iov_len - done);
        total -= parts[part].iov_len - done;
    }
    errno = saved;
}

static void record_path(char kind, const char *path) { record(kind, 0, 0, path, strlen(path), NULL, 0); }

/* ---- faults ---- */

static int fail(int number) {
    control[FAILED_CALLS]++;
    errno = number;
    return -1;
}

/* Takes one from a counter that is not 0; says whether it was. */
static int is_due(void) {
    uint64_t left = control[FAILS_AFTER];
    while (left && !atomic_compare_exchange_weak(&control[FAILS_AFTER], &left, left - 1)) {}
    return !left;
}

/* Waits while the disk stalls; refuses when it is read-only. */
static int admit(void) {
    if (control[STALL]) {
        control[STALLED_CALLS]++;
        while (control[STALL]) usleep(STALL_POLL_MICROS);
        control[STALLED_CALLS]--;
    }
    return control[READ_ONLY] ? fail(EROFS) : 0;
}

static int count_one(const char *path, const struct stat64 *status, int kind, struct FTW *walk) {
    (void)path, (void)walk;
    if (kind == FTW_D) control[USED_BYTES] += FOLDER_BYTES;
    if (kind == FTW_F) control[USED_BYTES] += (uint64_t)status->st_size;
    return 0;
}

/* Under the lock: what the root holds is counted once, when the quota is looked at first, and then kept up to date. */
static int has_quota(void) {
    if (!control[QUOTA_BYTES] && !is_counted) return 0;
    if (!is_counted) {
        control[USED_BYTES] = 0;
        nftw64(root, count_one, 32, FTW_PHYS);
        is_counted = 1;
    }
    return control[QUOTA_BYTES] != 0;
}

static uint64_t room(void) {
    if (!has_quota()) return UINT64_MAX;
    uint64_t used = control[USED_BYTES], quota = control[QUOTA_BYTES];
    return used < quota ? quota - used : 0;
}

static void give_back(uint64_t bytes) {
    if (is_counted) control[USED_BYTES] -= bytes < control[USED_BYTES] ? bytes : control[USED_BYTES];
}

static void take(uint64_t bytes) {
    if (is_counted) control[USED_BYTES] += bytes;
}

static uint64_t size_of(const char *path) {
    struct stat64 status;
    return !lstat64(path, &status) && S_ISREG(status.st_mode) && status.st_nlink == 1 ? (uint64_t)status.st_size : 0;
}

static uint64_t size_of_open(int descriptor) {
    struct stat64 status;
    return fstat64(descriptor, &status) ? 0 : (uint64_t)status.st_size;
}

/* ---- files ---- */

static int open_watched(int folder, const char *given, const char *path, int flags, mode_t mode) {
    struct stat64 status;
    int changes = flags & (O_CREAT | O_TRUNC);
    if (changes && admit()) return -1;
    if (control[READ_ONLY] && (flags & O_ACCMODE) != O_RDONLY) return fail(EROFS);
    pthread_mutex_lock(&lock);
    int existed = !lstat64(path, &status);
    if (!existed && (flags & O_CREAT) && !room()) {
        pthread_mutex_unlock(&lock);
        return fail(ENOSPC);
    }
    int descriptor = real_openat(folder, given, flags, mode);
    if (descriptor >= 0 && descriptor < DESCRIPTORS_MAX) {
        int is_created = !existed && (flags & O_CREAT);
        int is_emptied = existed && (flags & O_TRUNC) && status.st_size;
        if (is_emptied) give_back((uint64_t)status.st_size);
        free(open_files[descriptor].path);
        open_files[descriptor].path = strdup(path);
        open_files[descriptor].handle = handles++;
        record('O', open_files[descriptor].handle, (uint64_t)(is_created | is_emptied << 1), path, strlen(path), NULL, 0);
    } else if (descriptor >= 0) {
        errno = EMFILE, die("too many descriptors");
    }
    pthread_mutex_unlock(&lock);
    return descriptor;
}

static int open_any(int folder, const char *path, int flags, mode_t mode) {
    char absolute[PATH_MAX];
    if (path && !strncmp(path, MARK, sizeof MARK - 1)) {
        pthread_once(&started, start);
        pthread_mutex_lock(&lock);
        if (!strcmp(path, MARK "die")) kill(getpid(), SIGKILL), pause();
        record_path('A', path + sizeof MARK - 1);
        pthread_mutex_unlock(&lock);
        errno = ENOENT;
        return -1;
    }
    if (is_watched(folder, path, absolute)) return open_watched(folder, path, absolute, flags, mode);
    return real_openat(folder, path, flags, mode);
}

#define MODE(flags, mode)                                            \
    mode_t mode = 0;                                                 \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                         \
        va_list arguments;                                           \
        va_start(arguments, flags);                                  \
        mode = (mode_t)va_arg(arguments, unsigned);                  \
        va_end(arguments);                                           \
    }

int open64(const char *path, int flags, ...) { MODE(flags, mode) return open_any(AT_FDCWD, path, flags, mode); }
int open(const char *path, int flags, ...) { MODE(flags, mode) return open_any(AT_FDCWD, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags, mode) return open_any(folder, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags, mode) return open_any(folder, path, flags, mode); }
int creat64(const char *path, mode_t mode) { return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat(const char *path, mode_t mode) { return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int descriptor) {
    if (handle_of(descriptor)) {
        pthread_mutex_lock(&lock);
        open_files[descriptor].handle = 0;
        free(open_files[descriptor].path);
        open_files[descriptor].path = NULL;
        pthread_mutex_unlock(&lock);
    }
    return real_close(descriptor);
}

/* `offset` is -1 for "where the descriptor stands". A full disk takes what there is room for, as file systems do. */
static ssize_t write_watched(int descriptor, const void *bytes, size_t length, off64_t offset) {
    if (admit()) return -1;
    if (control[WRITE_FAILS] && is_due()) return fail(EIO);
    pthread_mutex_lock(&lock);
    off64_t at = offset;
    uint64_t size = size_of_open(descriptor);
    if (at < 0) {
        at = fcntl(descriptor, F_GETFL) & O_APPEND ? (off64_t)size : lseek64(descriptor, 0, SEEK_CUR);
    }
    uint64_t end = (uint64_t)at + length, free_bytes = room();
    if (end > size && end - size > free_bytes) {
        end = size + free_bytes;
        if (end <= (uint64_t)at) {
            pthread_mutex_unlock(&lock);
            return fail(ENOSPC);
        }
        length = end - (uint64_t)at;
    }
    ssize_t written = offset < 0 ? real_write(descriptor, bytes, length) : real_pwrite(descriptor, bytes, length, offset);
    if (written > 0) {
        if ((uint64_t)at + (uint64_t)written > size) take((uint64_t)at + (uint64_t)written - size);
        record('W', open_files[descriptor].handle, (uint64_t)at, bytes, (size_t)written, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return written;
}

ssize_t write(int descriptor, const void *bytes, size_t length) {
    return handle_of(descriptor) ? write_watched(descriptor, bytes, length, -1) : real_write(descriptor, bytes, length);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    if (!handle_of(descriptor)) return real_writev(descriptor, parts, count);
    /* One part at a time is allowed: a short write. */
    for (int part = 0; part < count; part++)
        if (parts[part].iov_len) return write_watched(descriptor, parts[part].iov_base, parts[part].iov_len, -1);
    return 0;
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t length, off64_t offset) {
    return handle_of(descriptor) ? write_watched(descriptor, bytes, length, offset)
                                 : real_pwrite(descriptor, bytes, length, offset);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t length, off_t offset) {
    return pwrite64(descriptor, bytes, length, offset);
}

int ftruncate64(int descriptor, off64_t length) {
    if (!handle_of(descriptor)) return real_ftruncate(descriptor, length);
    if (admit()) return -1;
    pthread_mutex_lock(&lock);
    uint64_t size = size_of_open(descriptor);
    int result = -1;
    if ((uint64_t)length > size && (uint64_t)length - size > room()) {
        fail(ENOSPC);
    } else if (!(result = real_ftruncate(descriptor, length))) {
        if ((uint64_t)length < size) give_back(size - (uint64_t)length);
        else take((uint64_t)length - size);
        record('T', open_files[descriptor].handle, (uint64_t)length, NULL, 0, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate(int descriptor, off_t length) { return ftruncate64(descriptor, length); }

/* Space that is promised and not written: as good as a longer file here, unless the size is kept. */
int fallocate64(int descriptor, int mode, off64_t offset, off64_t length) {
    if (!handle_of(descriptor)) return real_fallocate(descriptor, mode, offset, length);
    if (mode) return fail(EOPNOTSUPP);
    if ((uint64_t)(offset + length) <= size_of_open(descriptor)) return 0;
    return ftruncate64(descriptor, offset + length);
}

int fallocate(int descriptor, int mode, off_t offset, off_t length) { return fallocate64(descriptor, mode, offset, length); }
int posix_fallocate64(int descriptor, off64_t offset, off64_t length) { return fallocate64(descriptor, 0, offset, length) ? errno : 0; }
int posix_fallocate(int descriptor, off_t offset, off_t length) { return fallocate64(descriptor, 0, offset, length) ? errno : 0; }

/* ---- syncing ---- */

static int sync_watched(int descriptor, int (*really)(int)) {
    struct stat64 status;
    if (control[STALL] && admit()) return -1;
    if (control[SYNC_FAILS] && is_due()) return fail(EIO);
    if (log_descriptor < 0) return really(descriptor);
    int is_folder = !fstat64(descriptor, &status) && S_ISDIR(status.st_mode);
    pthread_mutex_lock(&lock);
    if (!control[is_folder ? FORGET_FOLDERS : FORGET_FILES])
        record('S', open_files[descriptor].handle, 0, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int descriptor) {
    return handle_of(descriptor) ? sync_watched(descriptor, real_fsync) : real_fsync(descriptor);
}

int fdatasync(int descriptor) {
    return handle_of(descriptor) ? sync_watched(descriptor, real_fdatasync) : real_fdatasync(descriptor);
}

/* Moves pages to the device without telling it to keep them: makes nothing durable. */
int sync_file_range(int descriptor, off64_t offset, off64_t length, unsigned flags) {
    if (!handle_of(descriptor)) return real_sync_file_range(descriptor, offset, length, flags);
    if (admit()) return -1;
    if (control[SYNC_FAILS] && is_due()) return fail(EIO);
    return log_descriptor < 0 ? real_sync_file_range(descriptor, offset, length, flags) : 0;
}

/* ---- names ---- */

static int rename_any(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    char old[PATH_MAX], new[PATH_MAX];
    int is_ours = is_watched(from_folder, from, old) + is_watched(to_folder, to, new);
    if (!is_ours)
        return flags ? real_renameat2(from_folder, from, to_folder, to, flags)
                     : real_renameat(from_folder, from, to_folder, to);
    if (is_ours == 1) return errno = EXDEV, -1;
    if (admit()) return -1;
    pthread_mutex_lock(&lock);
    uint64_t replaced = size_of(new);
    int result = flags ? real_renameat2(from_folder, from, to_folder, to, flags)
                       : real_renameat(from_folder, from, to_folder, to);
    if (!result) {
        give_back(replaced);
        record('R', 0, 0, old, strlen(old), new, strlen(new));
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int rename(const char *from, const char *to) { return rename_any(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    return rename_any(from_folder, from, to_folder, to, 0);
}
int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    return rename_any(from_folder, from, to_folder, to, flags);
}

static int remove_any(int folder, const char *path, int flags) {
    char absolute[PATH_MAX];
    if (!is_watched(folder, path, absolute)) return real_unlinkat(folder, path, flags);
    if (admit()) return -1;
    pthread_mutex_lock(&lock);
    uint64_t freed = flags & AT_REMOVEDIR ? FOLDER_BYTES : size_of(absolute);
    int result = real_unlinkat(folder, path, flags);
    if (!result) {
        give_back(freed);
        record_path(flags & AT_REMOVEDIR ? 'D' : 'U', absolute);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *path) { return remove_any(AT_FDCWD, path, 0); }
int unlinkat(int folder, const char *path, int flags) { return remove_any(folder, path, flags); }
int rmdir(const char *path) { return remove_any(AT_FDCWD, path, AT_REMOVEDIR); }

static int make_any(int folder, const char *path, mode_t mode) {
    char absolute[PATH_MAX];
    if (!is_watched(folder, path, absolute)) return real_mkdirat(folder, path, mode);
    if (admit()) return -1;
    pthread_mutex_lock(&lock);
    struct stat64 status;
    int result = -1;
    if (lstat64(absolute, &status) && room() < FOLDER_BYTES) {
        fail(ENOSPC);
    } else if (!(result = real_mkdirat(folder, path, mode))) {
        take(FOLDER_BYTES);
        record_path('M', absolute);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int mkdir(const char *path, mode_t mode) { return make_any(AT_FDCWD, path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { return make_any(folder, path, mode); }
