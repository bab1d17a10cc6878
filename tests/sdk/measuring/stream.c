/* Bytes per second of STREAM's four kernels and of a sum, with so many threads as the first argument says. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define N (32L << 20)
#define ROUNDS 8
enum { COPY, SCALE, ADD, TRIAD, SUM, KERNELS };

static const char *names[] = {"copy", "scale", "add", "triad", "sum"};
static const int arrays[] = {2, 2, 3, 3, 1};
static double *a, *b, *c;
static volatile double sums[64];
static int threads;
static pthread_barrier_t all;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void run(int kernel, long from, long to, int thread) {
    double sum = 0;
    switch (kernel) {
    case COPY: for (long i = from; i < to; i++) c[i] = a[i]; break;
    case SCALE: for (long i = from; i < to; i++) b[i] = 3.0 * c[i]; break;
    case ADD: for (long i = from; i < to; i++) c[i] = a[i] + b[i]; break;
    case TRIAD: for (long i = from; i < to; i++) a[i] = b[i] + 3.0 * c[i]; break;
    default: for (long i = from; i < to; i++) sum += a[i]; sums[thread] = sum;
    }
}

static void *work(void *argument) {
    int thread = (int)(intptr_t)argument;
    long from = N * thread / threads, to = N * (thread + 1) / threads;
    for (long i = from; i < to; i++) a[i] = 1, b[i] = 2, c[i] = 0;
    for (int kernel = 0; kernel < KERNELS; kernel++) {
        double best = 1e9;
        for (int round = 0; round < ROUNDS; round++) {
            pthread_barrier_wait(&all);
            double started = now();
            run(kernel, from, to, thread);
            pthread_barrier_wait(&all);
            double took = now() - started;
            if (took < best) best = took;
        }
        if (!thread) printf("%s %.0f\n", names[kernel], arrays[kernel] * sizeof(double) * N / best);
    }
    return 0;
}

int main(int count, char **words) {
    pthread_t others[64];
    threads = count > 1 ? atoi(words[1]) : 1;
    if (threads < 1 || threads > 64) return 1;
    a = aligned_alloc(1 << 21, N * sizeof(double));
    b = aligned_alloc(1 << 21, N * sizeof(double));
    c = aligned_alloc(1 << 21, N * sizeof(double));
    pthread_barrier_init(&all, 0, threads);
    for (int i = 0; i < threads; i++) pthread_create(others + i, 0, work, (void *)(intptr_t)i);
    for (int i = 0; i < threads; i++) pthread_join(others[i], 0);
    return 0;
}
