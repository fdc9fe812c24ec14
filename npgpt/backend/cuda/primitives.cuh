// What only the hardware knows, as functions. The tests put others of the same names in their
// place, in tests/cuda_on_cpu/shim.h, which do the same on a CPU.

struct bf16 { unsigned short bits; };  // the upper half of a float32: its range, 8 binary places
struct fp16 { unsigned short bits; };  // 5 bits of exponent, 11 binary places: from 6e-8 to 65504

#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#define DEVICE __device__ __forceinline__
#define SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
DEVICE float to_float(fp16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

// The nearest number of a type, and of two that are as near, the one whose last bit is 0. What is
// beyond the largest fp16 becomes infinite.
template <class number> DEVICE number rounded(float x);
template <> DEVICE float rounded<float>(float x) { return x; }
template <> DEVICE bf16 rounded<bf16>(float x) {
#if __CUDA_ARCH__ >= 800
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // not a number
    return {(unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}
template <> DEVICE fp16 rounded<fp16>(float x) {
    fp16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Two of them in one register, the first in its lower half.
template <class number> DEVICE unsigned rounded_pair(float first, float second) {
    return rounded<number>(first).bits | ((unsigned)rounded<number>(second).bits << 16);
}
#if __CUDA_ARCH__ >= 800
template <> DEVICE unsigned rounded_pair<bf16>(float first, float second) {
    unsigned y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(second), "f"(first));
    return y;
}
template <> DEVICE unsigned rounded_pair<fp16>(float first, float second) {
    unsigned y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(second), "f"(first));
    return y;
}
#endif

// 2 to the power of x, with an error of two roundings; of −∞ it is 0.
DEVICE float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#if __CUDA_ARCH__ >= 800

// Tensor cores multiply small matrices that lie spread over the registers of a warp. With
// g = lane / 4 and t = lane % 4, lane holds of
//     a (16, 16)   a[0] = [g, 2t : 2t + 2], a[1] = [g + 8, 2t …], a[2] = [g, 2t + 8 …], a[3] = both
//     b (16, 8)    b[0] = [2t : 2t + 2, g], b[1] = [2t + 8 …, g]
//     c (16, 8)    c[0], c[1] = [g, 2t : 2t + 2], c[2], c[3] = [g + 8, 2t : 2t + 2]
// c += a @ b, in float32, for a and b of a type.
template <class number>
DEVICE void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
#define MULTIPLY_ADD(number, name) \
    template <> DEVICE void multiply_add<number>( \
        float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) { \
        asm volatile( \
            "mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 " \
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); \
    }
MULTIPLY_ADD(bf16, "bf16")
MULTIPLY_ADD(fp16, "f16")

// Four matrices (8, 8) from shared memory: lane l says where row l % 8 of matrix l / 8 begins, at a
// multiple of 16 bytes. Of matrix i it gets m[i] = [g, 2t : 2t + 2].
DEVICE void load_matrices(unsigned (&m)[4], const void* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile(
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(address) : "memory");
}

// The same of their transposes: m[i] = [2t : 2t + 2, g].
DEVICE void load_matrices_across(unsigned (&m)[4], const void* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(address) : "memory");
}

#endif
