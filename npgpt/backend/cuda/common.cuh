// What all kernels share. `element` is the type of activations: float, bf16 or fp16. All arithmetic
// is in float32: elements are converted when they are loaded, and rounded when they are stored.
// A thread works on WIDTH elements at once: 16 bytes, or 1 element where rows are not aligned.

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
    *to = rounded<element>(x[0]);
#else
    uint4 bits;
    element* part = (element*)&bits;
    #pragma unroll
    for (int i = 0; i < WIDTH; i++) part[i] = rounded<element>(x[i]);
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

// Dropout's m for the number at a place: 0, or `scale`, which is 1 / (1 − rate). SplitMix64 makes 64
// bits of key and place, which are below `least` for a share `rate` of all places. These are
// integers only, so the masks are those of every other device, bit for bit.
struct Mask {
    unsigned long long key, least;
    float scale;
};

DEVICE float mask_at(const Mask& mask, unsigned long long place) {
    unsigned long long z = mask.key + place * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return (z ^ (z >> 31)) >= mask.least ? mask.scale : 0.0f;
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
