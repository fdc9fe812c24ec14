// The optimizer: four arrays of all the parameters, each number read and written once.
//
//     m ← β₁ m + (1 − β₁) g
//     v ← β₂ v + (1 − β₂) g²
//     p ← keep · p − length · m / (√v · root + eps)
//
// with length = lr / (1 − β₁ᵗ), root = 1 / √(1 − β₂ᵗ), and keep = 1 − lr · λ for the first
// `decayed` parameters and 1 for the others. What changes from step to step is read from the
// device's memory, so that a recorded graph of a step can be replayed:
//     knobs (4,) float: keep, length, root, and the factor that clips the gradient; where that
//     is negative, no step is taken (see steps.cu)
// `shadow` is p rounded to SHADOW, bf16 or fp16, which the next forward works with.
//
// Shapes: p, g, m, v (n,) float; shadow (n,) SHADOW. Here `element` is float.
// Bytes moved: 28 n, and 2 n for the shadow. The norm of the gradient: 4 n.
//
// Launch: adamw has a thread for each WIDTH numbers, in blocks of 256. The sum of squares has
// PARTS blocks, each with its own share of g, and then one block that adds up their sums, in
// float64: the shares do not depend on the GPU, so neither do the bits.

#define PARTS 1024

// Take the step for WIDTH parameters, and leave them in a.
DEVICE void take_step(
    float (&a)[WIDTH], float* p, const float* g, float* m, float* v, const float* knobs,
    long long i, long long decayed, float beta1, float rest1, float beta2, float rest2, float eps) {
    float keep = knobs[0], length = knobs[1], root = knobs[2], clip = knobs[3];
    float b[WIDTH], c[WIDTH], d[WIDTH];
    load_floats(a, p + i);
    load_floats(b, g + i);
    load_floats(c, m + i);
    load_floats(d, v + i);
    #pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        float gradient = b[j] * clip;
        c[j] = beta1 * c[j] + rest1 * gradient;
        d[j] = beta2 * d[j] + rest2 * (gradient * gradient);
        a[j] = (i + j < decayed ? keep : 1.0f) * a[j] - length * c[j] / (sqrtf(d[j]) * root + eps);
    }
    store_floats(p + i, a);
    store_floats(m + i, c);
    store_floats(v + i, d);
}

#define PLACE ((blockIdx.x * 256LL + threadIdx.x) * WIDTH)

extern "C" __global__ void __launch_bounds__(256) adamw(
    float* p, const float* g, float* m, float* v, const float* knobs, long long n,
    long long decayed, float beta1, float rest1, float beta2, float rest2, float eps) {
    if (PLACE >= n || knobs[3] < 0.0f) return;
    float a[WIDTH];
    take_step(a, p, g, m, v, knobs, PLACE, decayed, beta1, rest1, beta2, rest2, eps);
}

extern "C" __global__ void __launch_bounds__(256) adamw_and_shadow(
    float* p, const float* g, float* m, float* v, SHADOW* shadow, const float* knobs, long long n,
    long long decayed, float beta1, float rest1, float beta2, float rest2, float eps) {
    if (PLACE >= n || knobs[3] < 0.0f) return;
    float a[WIDTH];
    take_step(a, p, g, m, v, knobs, PLACE, decayed, beta1, rest1, beta2, rest2, eps);
#if WIDTH == 4
    uint2 pairs = {rounded_pair<SHADOW>(a[0], a[1]), rounded_pair<SHADOW>(a[2], a[3])};
    *(uint2*)(shadow + PLACE) = pairs;
#else
    shadow[PLACE] = rounded<SHADOW>(a[0]);
#endif
}

// The sum of a block's numbers, in its first thread.
DEVICE double block_sum(double x) {
    __shared__ double part[32];
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_sum(threadIdx.x % WARP < blockDim.x / WARP ? part[threadIdx.x % WARP] : 0.0);
}

extern "C" __global__ void __launch_bounds__(256) squares(
    const float* g, double* parts, long long n) {
    double sum = 0.0;
    for (long long i = PLACE; i < n; i += PARTS * 256LL * WIDTH) {
        float a[WIDTH], four = 0.0f;
        load_floats(a, g + i);
        #pragma unroll
        for (int j = 0; j < WIDTH; j++) four += a[j] * a[j];
        sum += four;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(1024) squares_total(
    const double* parts, double* total) {
    double sum = block_sum(parts[threadIdx.x]);
    if (threadIdx.x == 0) *total = sum;
}
