/* Measures the peak of fp32 multiply-adds: as many independent ones as registers hold, on so many threads at once.
 *
 *     peak THREADS      prints GFLOP/s, a multiply-add being two operations; the best of several rounds */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined __AVX512F__
enum { WIDTH = 16, CHAINS = 24 };
#elif defined __AVX__
enum { WIDTH = 8, CHAINS = 12 };
#else
enum { WIDTH = 4, CHAINS = 24 }; /* NEON */
#endif

enum { STEPS = 1'000'000, ROUNDS = 25, MOST_THREADS = 1024 };

typedef float floats __attribute__((vector_size(WIDTH * sizeof(float))));

#ifdef __aarch64__
#define IN_REGISTER "w"
#else
#define IN_REGISTER "v"
#endif

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void *multiply(void *unused) {
    floats sums[CHAINS] = {0}, half = (floats){0} + 0.5f;
    for (int step = 0; step < STEPS; step++)
#pragma clang loop unroll(full) /* else the sums are an array in memory */
        for (int i = 0; i < CHAINS; i++) {
            sums[i] = __builtin_elementwise_fma(sums[i], half, half);
            __asm__ volatile("" : "+" IN_REGISTER(sums[i])); /* neither left out nor merged with its neighbours */
        }
    return unused;
}

int main(int count, char **arguments) {
    int threads = count == 2 ? atoi(arguments[1]) : 0;
    if (threads < 1 || threads > MOST_THREADS) return fprintf(stderr, "peak: expected a number of threads\n"), 2;
    double least = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        pthread_t others[MOST_THREADS];
        double    began = seconds();
        for (int i = 1; i < threads; i++)
            if (pthread_create(&others[i], NULL, multiply, NULL)) return fprintf(stderr, "peak: no more threads\n"), 1;
        multiply(NULL);
        for (int i = 1; i < threads; i++) pthread_join(others[i], NULL);
        double took = seconds() - began;
        if (took < least) least = took;
    }
    printf("%.1f\n", 2.0 * WIDTH * CHAINS * STEPS * threads / least / 1e9);
}
