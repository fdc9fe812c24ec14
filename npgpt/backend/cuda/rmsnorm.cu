// RMSNorm, a warp a row: no thread waits for another warp.
//
//     forward    y = x · rstd · w, with rstd = (mean(x²) + eps)^(−1/2)
//     backward   dx = rstd · (g − x̂ · mean(g · x̂)) with g = dy · w and x̂ = x · rstd
//                dw = Σ_rows dy · x̂
//
// Where x runs on past what reads it through this norm, `past` is the gradient of that other use:
// if the two are to be `joined`, it is added to dx. Otherwise nobody reads it.
//
// Shapes: x, y, dy, past, dx (N, C) element; w (C,) element; rstd (N,) float; dw (C,) float.
//
// Bytes moved, for elements of e bytes: forward 2·e·N·C, backward 3·e·N·C, or joined 4·e·N·C. A row
// is read twice, but the second time from the nearest cache.
//
// Launch: blocks of WARPS warps. The forward has a warp for each row. The backward has fewer, each
// of which takes every so-manyth row and keeps a sum of its own for dw in shared memory: `slice`
// floats a warp. Then the block adds its warps' sums up and writes a row of `partial`, and a second
// kernel adds these, always in the same order: so the same bits come out every time. Where C is
// more than a slice, blocks along y share the channels: each reads whole rows, but writes a slice.

#define WARPS 4

extern "C" __global__ void __launch_bounds__(128) rmsnorm_forward(
    const element* x, const element* w, element* y, float* rstd,
    long long N, int C, float eps) {
    int lane = threadIdx.x % WARP;
    long long n = (long long)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (n >= N) return;  // a whole warp
    const element* row = x + n * C;
    float squares = 0.0f;
    for (int c = lane * WIDTH; c < C; c += WARP * WIDTH) {
        float a[WIDTH];
        load(a, row + c);
        #pragma unroll
        for (int i = 0; i < WIDTH; i++) squares += a[i] * a[i];
    }
    float r = 1.0f / sqrtf(warp_sum(squares) / (float)C + eps);
    if (lane == 0) rstd[n] = r;
    for (int c = lane * WIDTH; c < C; c += WARP * WIDTH) {
        float a[WIDTH], gain[WIDTH];
        load(a, row + c);
        load(gain, w + c);
        #pragma unroll
        for (int i = 0; i < WIDTH; i++) a[i] = a[i] * r * gain[i];
        store(y + n * C + c, a);
    }
}

extern "C" __global__ void __launch_bounds__(128) rmsnorm_backward(
    const element* dy, const element* x, const element* w, const float* rstd,
    const element* past, element* dx, float* partial, long long N, int C, int slice, int joined) {
    // Each warp's part of dw, as (WARPS, WIDTH, packs): channel p · WIDTH + i of the slice lies at
    // [i, p], so that neighbouring lanes, which have neighbouring p, use different banks.
    SHARED_MEMORY(memory);
    int lane = threadIdx.x % WARP, first = blockIdx.y * slice, count = min(slice, C - first);
    int packs = count / WIDTH;
    float* sums = (float*)memory + threadIdx.x / WARP * count;
    for (int c = lane; c < count; c += WARP) sums[c] = 0.0f;
    __syncwarp();
    long long stride = (long long)gridDim.x * WARPS;
    for (long long n = (long long)blockIdx.x * WARPS + threadIdx.x / WARP; n < N; n += stride) {
        float r = rstd[n], along = 0.0f;
        for (int c = lane * WIDTH; c < C; c += WARP * WIDTH) {
            float a[WIDTH], d[WIDTH], gain[WIDTH];
            load(a, x + n * C + c);
            load(d, dy + n * C + c);
            load(gain, w + c);
            #pragma unroll
            for (int i = 0; i < WIDTH; i++) along += d[i] * gain[i] * (a[i] * r);
        }
        float mean = warp_sum(along) / (float)C;
        for (int c = first + lane * WIDTH; c < first + count; c += WARP * WIDTH) {
            float a[WIDTH], d[WIDTH], gain[WIDTH], stream[WIDTH] = {};
            load(a, x + n * C + c);
            load(d, dy + n * C + c);
            load(gain, w + c);
            if (joined) load(stream, past + n * C + c);
            #pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                float xhat = a[i] * r;
                int place = i * packs + (c - first) / WIDTH;  // no other thread touches this one
                sums[place] += d[i] * xhat;
                a[i] = stream[i] + r * (d[i] * gain[i] - xhat * mean);
            }
            store(dx + n * C + c, a);
        }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < count; c += WARPS * WARP) {
        const float* place = (const float*)memory + c % WIDTH * packs + c / WIDTH;
        float sum = 0.0f;
        #pragma unroll
        for (int v = 0; v < WARPS; v++) sum += place[v * count];
        partial[(long long)blockIdx.x * C + first + c] = sum;
    }
}
