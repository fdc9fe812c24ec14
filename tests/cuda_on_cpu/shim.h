// Runs CUDA C on a CPU, to see whether it computes what it should: in place of primitives.cuh.
//
// Each thread of a block is a fiber: a function with a stack of its own, which can stop in the
// middle and go on later. The threads of a block take turns, and a turn ends where a thread must
// wait for others: at a barrier, or where a warp exchanges numbers. Blocks run one after another.
//
// What a GPU leaves undefined is made visible here:
//     shared memory is full of NaN when a block begins;
//     warps (and blocks) can take their turns in reverse, so that a missing barrier, or a result
//         that depends on who came first, shows in different bits;
//     a barrier that not all threads reach, or an exchange that not all lanes of a warp reach, is
//         an error.
// It says nothing about speed, bank conflicts, or what a GPU's memory does asynchronously.

#include <stdint.h>
#include <string.h>

// What kernels call of <math.h>, which in C++ takes longer to read than most kernels to compile.
extern "C" {
float erff(float), expf(float), exp2f(float), fabsf(float), fmaxf(float, float), logf(float);
float rintf(float), sqrtf(float);
double pow(double, double), sqrt(double);
void abort();
}
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")

#define __global__
#define __device__ static inline
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ __attribute__((section("shared_memory"))) static
#define DEVICE static inline
#define SHARED_MEMORY(name) unsigned char* name = shim::dynamic_memory

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }

struct dim3 { unsigned x, y, z; };
struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };

static dim3 threadIdx, blockIdx, blockDim, gridDim;

// The linker names both ends of a section; one byte is put there, so that there is a section.
extern "C" unsigned char __start_shared_memory[], __stop_shared_memory[];
__shared__ unsigned char at_least_one_byte __attribute__((used));

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace shim {

const unsigned WARP_LANES = 32, MOST_THREADS = 1024, STACK_BYTES = 64 * 1024;
const unsigned MOST_SHARED_BYTES = 232448, GUARD = 1024;

enum State { READY, AT_BARRIER, IN_EXCHANGE, DONE };

struct Fiber {
#if defined(__x86_64__)
    void* stack_pointer;
#else
    ucontext_t context;
#endif
    State state;
};

static Fiber fibers[MOST_THREADS], scheduler, *current;
alignas(64) static unsigned char stacks[MOST_THREADS][STACK_BYTES];
static const void* kernel;  // what every thread of the launch calls, and how
static void (*call)(const void* kernel);
alignas(128) static unsigned char dynamic_memory[MOST_SHARED_BYTES + GUARD];
struct Slot { unsigned long long words[8]; };
static Slot exchanged[2][32][WARP_LANES];  // what each lane of each warp shows to the others
static unsigned turn[MOST_THREADS];               // which of the two, by thread

#if defined(__x86_64__)
// Keep the registers that a function must keep, and go on with another stack.
extern "C" void shim_switch(void** from, void* to);
asm(R"(
    .pushsection .text
    .type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size shim_switch, .-shim_switch
    .popsection
)");
#endif

static void switch_fibers(Fiber& from, Fiber& to) {
#if defined(__x86_64__)
    shim_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
}

static void wait(State state) {
    current->state = state;
    switch_fibers(*current, scheduler);
}

static void run_thread() {
    call(kernel);
    wait(DONE);
    abort();  // nobody wakes a thread that is done
}

static void prepare(Fiber& fiber, unsigned char* stack) {
    fiber.state = READY;
#if defined(__x86_64__)
    uintptr_t top = (uintptr_t)stack + STACK_BYTES;
    void** sp = (void**)top;
    *--sp = nullptr;              // where run_thread would return to, and its alignment
    *--sp = (void*)run_thread;    // where the first switch returns to
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    fiber.stack_pointer = sp;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_thread, 0);
#endif
}

// Let a warp run until all its lanes wait for other warps, or are done.
static const char* run_warp(unsigned first, unsigned last) {
    for (;;) {
        for (unsigned t = first; t < last; t++) {
            if (fibers[t].state != READY) continue;
            current = &fibers[t];
            threadIdx.x = t;
            switch_fibers(scheduler, fibers[t]);
        }
        unsigned exchanging = 0;
        for (unsigned t = first; t < last; t++) exchanging += fibers[t].state == IN_EXCHANGE;
        if (exchanging == 0) return nullptr;
        if (exchanging != last - first) return "not all lanes of a warp came to an exchange";
        for (unsigned t = first; t < last; t++) fibers[t].state = READY;
    }
}

static const char* run_block(unsigned threads, bool reverse) {
    memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    for (unsigned t = 0; t < threads; t++) prepare(fibers[t], stacks[t]);
    memset(turn, 0, sizeof turn);
    unsigned warps = threads / WARP_LANES;
    for (;;) {
        for (unsigned i = 0; i < warps; i++) {
            unsigned warp = reverse ? warps - 1 - i : i;
            const char* error = run_warp(warp * WARP_LANES, (warp + 1) * WARP_LANES);
            if (error) return error;
        }
        unsigned waiting = 0;
        for (unsigned t = 0; t < threads; t++) waiting += fibers[t].state == AT_BARRIER;
        if (waiting == 0) return nullptr;
        if (waiting != threads) return "not all threads of a block came to a barrier";
        for (unsigned t = 0; t < threads; t++) fibers[t].state = READY;
    }
}

// Run a kernel, a function without arguments. Returns what is wrong with it, or null.
template <class Kernel> static const char* launch(
    const unsigned* grid, unsigned threads, unsigned long long shared_bytes, bool reverse,
    const Kernel& function) {
    if (threads % WARP_LANES || threads > MOST_THREADS || threads == 0)
        return "a block must be whole warps, and at most 1024 threads";
    if (shared_bytes + (__stop_shared_memory - __start_shared_memory) > MOST_SHARED_BYTES)
        return "more shared memory than any GPU has";
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    threadIdx = {0, 0, 0};
    kernel = &function;
    call = [](const void* k) { (*(const Kernel*)k)(); };
    unsigned long long blocks = (unsigned long long)grid[0] * grid[1] * grid[2];
    for (unsigned long long i = 0; i < blocks; i++) {
        unsigned long long b = reverse ? blocks - 1 - i : i;
        blockIdx.x = b % grid[0];
        blockIdx.y = b / grid[0] % grid[1];
        blockIdx.z = b / grid[0] / grid[1];
        memset(dynamic_memory, 0xff, shared_bytes + GUARD);
        const char* error = run_block(threads, reverse);
        if (error) return error;
        for (unsigned long long j = shared_bytes; j < shared_bytes + GUARD; j++)
            if (dynamic_memory[j] != 0xff) return "wrote past the end of its shared memory";
    }
    return nullptr;
}

// Show a value to the warp, wait for all lanes, and get what each of them shows. Two sets of slots
// take turns: a lane that runs ahead to its next exchange must not cover what others still read.
template <class T> static Slot* show(const T& value) {
    static_assert(sizeof(T) <= sizeof(Slot), "too much to exchange at once");
    unsigned thread = threadIdx.x, warp = thread / WARP_LANES;
    Slot* slots = exchanged[turn[thread]++ % 2][warp];
    memcpy(slots[thread % WARP_LANES].words, &value, sizeof value);
    wait(IN_EXCHANGE);
    threadIdx.x = thread;
    return slots;
}

template <class T> static T shown(const Slot* slots, unsigned lane) {
    T value;
    memcpy(&value, slots[lane].words, sizeof value);
    return value;
}

}  // namespace shim

static inline void __syncthreads() {
    unsigned thread = threadIdx.x;
    shim::wait(shim::AT_BARRIER);
    threadIdx.x = thread;
}
static inline void __syncwarp(unsigned = 0) { shim::show(0); }

template <class T> static inline T __shfl_xor_sync(unsigned, T value, int mask) {
    return shim::shown<T>(shim::show(value), (threadIdx.x % 32) ^ mask);
}
template <class T> static inline T __shfl_sync(unsigned, T value, int lane) {
    return shim::shown<T>(shim::show(value), lane % 32);
}
static inline int atomicAdd(int* place, int more) {
    int before = *place;
    *place += more;
    return before;
}

static inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline float __fmul_rn(float x, float y) {  // never one with the sum that follows
    volatile float product = x * y;
    return product;
}

struct bf16 { unsigned short bits; };
struct fp16 { unsigned short bits; };

static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
static inline float to_float(fp16 x) {
    unsigned size = x.bits & 0x7fffu, sign = (x.bits & 0x8000u) << 16;
    float y = size < 0x7c00 ? __uint_as_float(size << 13) * 0x1p112f  // an exponent less by 112
                            : __uint_as_float(size << 13 | 0x7f800000u);
    return __uint_as_float(__float_as_uint(y) | sign);
}

template <class number> static number rounded(float x);
template <> float rounded<float>(float x) { return x; }
template <> bf16 rounded<bf16>(float x) {
    unsigned bits = __float_as_uint(x);
    if (x != x) return {0x7fff};
    return {(unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <> fp16 rounded<fp16>(float x) {
    float size = fabsf(x);
    unsigned sign = __float_as_uint(x) >> 16 & 0x8000u, bits = __float_as_uint(size);
    if (x != x) return {0x7fff};
    if (size >= 65520.0f) bits = 0x7c00;  // half way from the largest to what would come next
    else if (size < 0x1p-14f) bits = (unsigned)rintf(size * 0x1p24f);
    else bits = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
    return {(unsigned short)(bits | sign)};
}
template <class number> static unsigned rounded_pair(float first, float second) {
    return rounded<number>(first).bits | ((unsigned)rounded<number>(second).bits << 16);
}

static inline float fast_exp2(float x) { return exp2f(x); }

// The tensor cores' ways to spread matrices over a warp, as primitives.cuh tells them.
struct Fragments { unsigned a[4], b[2]; };

template <class number> static float half_of(unsigned pair, int which) {
    return to_float(number{(unsigned short)(pair >> 16 * which)});
}

template <class number>
static void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    Fragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    const shim::Slot* slots = shim::show(mine);
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; i++) {
        int row = g + i / 2 * 8, column = 2 * t + i % 2;
        float sum = c[i];
        for (int k = 0; k < 16; k++) {
            const Fragments* left = (const Fragments*)&slots[row % 8 * 4 + k % 8 / 2];
            const Fragments* right = (const Fragments*)&slots[column * 4 + k % 8 / 2];
            sum += half_of<number>(left->a[row / 8 + k / 8 * 2], k % 2) *
                   half_of<number>(right->b[k / 8], k % 2);
        }
        c[i] = sum;
    }
}

static inline void take_matrices(unsigned (&m)[4], const void* row, bool across) {
    const shim::Slot* slots = shim::show(row);
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; i++) {
        unsigned short pair[2];
        for (int j = 0; j < 2; j++) {
            int from = across ? 2 * t + j : g, column = across ? g : 2 * t + j;
            const void* place = shim::shown<const void*>(slots, 8 * i + from);
            if ((uintptr_t)place % 16) abort();  // as a GPU would
            memcpy(&pair[j], (const char*)place + 2 * column, 2);
        }
        m[i] = pair[0] | (unsigned)pair[1] << 16;
    }
}
static inline void load_matrices(unsigned (&m)[4], const void* row) {
    take_matrices(m, row, false);
}
static inline void load_matrices_across(unsigned (&m)[4], const void* row) {
    take_matrices(m, row, true);
}
