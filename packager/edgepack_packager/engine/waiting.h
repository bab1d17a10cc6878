// Part of edgepack, not of llama.cpp. MIT.
//
// A thread of ggml waits for the others at every operator, by spinning: the fastest way while each has a core of its own.
// Where other programs have the cores, it spins away the time of the very thread that it waits for. Here it spins for as long
// as an operator takes, and sleeps then.
#pragma once

// Rounds of spinning before a thread sleeps; negative: it never sleeps. The program may set it between two steps.
#if defined(__x86_64__)
#define EDGEPACK_ROUNDS 2000
#else
#define EDGEPACK_ROUNDS 20000 // of an instruction that takes a tenth of the time
#endif

GGML_BACKEND_API atomic_int edgepack_rounds;
atomic_int edgepack_rounds = EDGEPACK_ROUNDS;

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_int edgepack_sleepers;

static inline bool edgepack_spins(int rounds) {
    const int most = atomic_load_explicit(&edgepack_rounds, memory_order_relaxed);
    return most < 0 || rounds < most;
}

// Sleep until the counter changes from a value; it may return earlier.
static inline void edgepack_sleep(atomic_int * counter, int value) {
    // Counted before the system compares the value, and looked at after the value was changed: none sleeps on.
    atomic_fetch_add_explicit(&edgepack_sleepers, 1, memory_order_seq_cst);
    syscall(SYS_futex, counter, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
    atomic_fetch_sub_explicit(&edgepack_sleepers, 1, memory_order_relaxed);
}

static inline void edgepack_wake(atomic_int * counter) {
    if (atomic_load_explicit(&edgepack_sleepers, memory_order_seq_cst) != 0) {
        syscall(SYS_futex, counter, FUTEX_WAKE_PRIVATE, 0x7fffffff, NULL, NULL, 0);
    }
}
#else
static inline bool edgepack_spins(int rounds) { (void) rounds; return true; }
static inline void edgepack_sleep(atomic_int * counter, int value) { (void) counter; (void) value; }
static inline void edgepack_wake(atomic_int * counter) { (void) counter; }
#endif
