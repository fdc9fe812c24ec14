// LayerNorm, a warp a row: no thread waits for another warp.
//
//     forward    y = x̂ · w + b, with x̂ = (x − μ) · rstd, μ = mean(x) and
//                rstd = (mean((x − μ)²) + eps)^(−1/2)
//     backward   dx = rstd · (g − mean(g) − x̂ · mean(g · x̂)) with g = dy · w
//                dw = Σ_rows dy · x̂,  db = Σ_rows dy
//
// Where x runs on past what reads it through this norm, `past` is the gradient of that other use:
// if the two are to be `joined`, it is added to dx. Otherwise nobody reads it.
//
// Shapes: x, y, dy, past, dx (N, C) element; w, b (C,) element; mean, rstd (N,) float; partial
// (parts, 2, C) float, of dw and db. Unless it is `biased`, nobody reads b.
//
// Bytes moved, for elements of e bytes: forward 2·e·N·C, backward 3·e·N·C, or joined 4·e·N·C. A row
// is read three times forward and twice backward, but all but the first time from the nearest
// cache.
//
// Launch: as of rmsnorm.cu. The forward has a warp for each row. The backward has fewer, each of
// which takes every so-manyth row and keeps sums of its own for dw and db in shared memory: twice
// `slice` floats a warp. Where C is more than a slice, blocks along y share the channels: each
// reads whole rows, but writes a slice.

#define WARPS 4

extern "C" __global__ void __launch_bounds__(128) layernorm_forward(
    const element* x, const element* w, const element* b, element* y, float* mean, float* rstd,
    long long N, int C, float eps, int biased) {
    int lane = threadIdx.x % WARP;
    long long n = (long long)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (n >= N) return;  // a whole warp
    const element* row = x + n * C;
    float sum = 0.0f, squares = 0.0f;
    for (int c = lane * WIDTH; c < C; c += WARP * WIDTH) {
        float a[WIDTH];
        load(a, row + c);
        #pragma unroll
        for (int i = 0; i < WIDTH; i++) sum += a[i];
    }
    float m = warp_sum(sum) / (float)C;
    for (int c = lane * WIDTH; c < C; c += WARP * WIDTH) {
        float a[WIDTH];
        load(a, row + c);
        #pragma unroll
        for (int i = 0; i < WIDTH; i++) squares += (a[i] - m) * (a[i] - m);
    }
    float r = 1.0f / sqrtf(warp_sum(squares) / (float)C + eps);
    if (lane == 0) mean[n] = m, rstd[n] = r;
    for (int c = lane * WIDTH; c < C; c += WARP * WIDTH) {
        float a[WIDTH], gain[WIDTH], shift[WIDTH] = {};
        load(a, row + c);
        load(gain, w + c);
        if (biased) load(shift, b + c);
        #pragma unroll
        for (int i = 0; i < WIDTH; i++) a[i] = (a[i] - m) * r * gain[i] + shift[i];
        store(y + n * C + c, a);
    }
}

extern "C" __global__ void __launch_bounds__(128) layernorm_backward(
    const element* dy, const element* x, const element* w, const float* mean, const float* rstd,
    const element* past, element* dx, float* partial, long long N, int C, int slice, int joined) {
    // Each warp's part of dw, and then of db, as (WIDTH, packs): channel p · WIDTH + i of the slice
    // lies at [i, p], so that neighbouring lanes, which have neighbouring p, use different banks.
    SHARED_MEMORY(memory);
    int lane = threadIdx.x % WARP, first = blockIdx.y * slice, count = min(slice, C - first);
    int packs = count / WIDTH;
    float* scaled = (float*)memory + threadIdx.x / WARP * 2 * count;
    float* moved = scaled + count;
    for (int c = lane; c < 2 * count; c += WARP) scaled[c] = 0.0f;
    __syncwarp();
    long long stride = (long long)gridDim.x * WARPS;
    for (long long n = (long long)blockIdx.x * WARPS + threadIdx.x / WARP; n < N; n += stride) {
        float m = mean[n], r = rstd[n], sum = 0.0f, along = 0.0f;
        for (int c = lane * WIDTH; c < C; c += WARP * WIDTH) {
            float a[WIDTH], d[WIDTH], gain[WIDTH];
            load(a, x + n * C + c);
            load(d, dy + n * C + c);
            load(gain, w + c);
            #pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                sum += d[i] * gain[i];
                along += d[i] * gain[i] * ((a[i] - m) * r);
            }
        }
        float mean_g = warp_sum(sum) / (float)C, mean_along = warp_sum(along) / (float)C;
        for (int c = first + lane * WIDTH; c < first + count; c += WARP * WIDTH) {
            float a[WIDTH], d[WIDTH], gain[WIDTH], stream[WIDTH] = {};
            load(a, x + n * C + c);
            load(d, dy + n * C + c);
            load(gain, w + c);
            if (joined) load(stream, past + n * C + c);
            #pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                float xhat = (a[i] - m) * r;
                int place = i * packs + (c - first) / WIDTH;  // no other thread touches this one
                scaled[place] += d[i] * xhat;
                moved[place] += d[i];
                // A product that is rounded by itself: g and mean(g) may be equal.
                a[i] = stream[i] + r * (__fmul_rn(d[i], gain[i]) - mean_g - xhat * mean_along);
            }
            store(dx + n * C + c, a);
        }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < count; c += WARPS * WARP) {
        const float* place = (const float*)memory + c % WIDTH * packs + c / WIDTH;
        float dw = 0.0f, db = 0.0f;
        #pragma unroll
        for (int v = 0; v < WARPS; v++, place += 2 * count) dw += place[0], db += place[count];
        float* to = partial + 2LL * blockIdx.x * C + first + c;
        to[0] = dw, to[C] = db;
    }
}
