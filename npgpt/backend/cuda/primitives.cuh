// What only the hardware knows, as functions. The tests put others of the same names in their
// place, in tests/cuda_on_cpu/shim.h, which do the same on a CPU.

typedef unsigned short bf16;  // the upper 16 bits of a float32

#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#define DEVICE __device__ __forceinline__
#define SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]

// The nearest bf16, and of two that are as near, the one whose last bit is 0.
DEVICE bf16 to_bf16(float x) {
#if __CUDA_ARCH__ >= 800
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
#else
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bf16)0x7fff;  // not a number
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

// Two of them in one register, the first in its lower half.
DEVICE unsigned to_bf16_pair(float first, float second) {
#if __CUDA_ARCH__ >= 800
    unsigned y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(second), "f"(first));
    return y;
#else
    return (unsigned)to_bf16(first) | ((unsigned)to_bf16(second) << 16);
#endif
}

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
// c += a @ b, in float32.
DEVICE void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices (8, 8) from shared memory: lane l says where row l % 8 of matrix l / 8 begins, at a
// multiple of 16 bytes. Of matrix i it gets m[i] = [g, 2t : 2t + 2].
DEVICE void load_matrices(unsigned (&m)[4], const bf16* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile(
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(address) : "memory");
}

// The same of their transposes: m[i] = [2t : 2t + 2, g].
DEVICE void load_matrices_across(unsigned (&m)[4], const bf16* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(address) : "memory");
}

#endif
