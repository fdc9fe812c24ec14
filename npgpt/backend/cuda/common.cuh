// What all kernels share. `element` is the type of activations: float, or bf16. All arithmetic is
// in float32: elements are converted when they are loaded, and rounded when they are stored.
// A thread works on WIDTH elements at once: 16 bytes, or 1 element where rows are not aligned.

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __uint_as_float((unsigned)x << 16); }

#if ELEMENT_IS_BF16
DEVICE element to_element(float x) { return to_bf16(x); }
#else
DEVICE element to_element(float x) { return x; }
#endif

DEVICE void load(float (&x)[WIDTH], const element* from) {
#if WIDTH == 1
    x[0] = to_float(*from);
#else
    uint4 bits = *(const uint4*)from;
    const element* part = (const element*)&bits;
    #pragma unroll
    for (int i = 0; i < WIDTH; i++) x[i] = to_float(part[i]);
#endif
}

DEVICE void store(element* to, const float (&x)[WIDTH]) {
#if WIDTH == 1
    *to = to_element(x[0]);
#else
    uint4 bits;
    element* part = (element*)&bits;
    #pragma unroll
    for (int i = 0; i < WIDTH; i++) part[i] = to_element(x[i]);
    *(uint4*)to = bits;
#endif
}

// The same for numbers that are float32 whatever the elements are.
DEVICE void load_floats(float (&x)[WIDTH], const float* from) {
    #pragma unroll
    for (int i = 0; i < WIDTH; i++) {
#if WIDTH == 1
        x[i] = from[i];
#else
        if (i % 4 == 0) {
            float4 four = *(const float4*)(from + i);
            x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
        }
#endif
    }
}

DEVICE void store_floats(float* to, const float (&x)[WIDTH]) {
    #pragma unroll
    for (int i = 0; i < WIDTH; i++) {
#if WIDTH == 1
        to[i] = x[i];
#else
        if (i % 4 == 0) {
            float4 four = {x[i], x[i + 1], x[i + 2], x[i + 3]};
            *(float4*)(to + i) = four;
        }
#endif
    }
}

#define WARP 32
#define ALL_LANES 0xffffffffu

// The sum over a warp, in every lane, and with the same bits in every lane.
template <class number>
DEVICE number warp_sum(number x) {
    #pragma unroll
    for (int m = WARP / 2; m > 0; m /= 2) x += __shfl_xor_sync(ALL_LANES, x, m);
    return x;
}

DEVICE float warp_max(float x) {
    #pragma unroll
    for (int m = WARP / 2; m > 0; m /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, m));
    return x;
}
