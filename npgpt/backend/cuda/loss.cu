// Softmax cross-entropy, a block a row of logits.
//
//     forward    lse  = log Σᵥ exp(zᵥ) = m + log Σᵥ exp(zᵥ − m), with m = max z
//                loss = mean over rows of lse − z_target
//     backward   dzᵥ = (exp(zᵥ − lse) − qᵥ) · scale, with qᵥ = [v = target]
//
// With smoothing ε, which is 0 otherwise,
//     forward    loss = mean over rows of (lse − z_target) + ε · (z_target − mean(z))
//     backward   qᵥ = (1 − ε) · [v = target] + ε / V
//
// Shapes: z, dz (N, V) element; targets (N,) ID; lse, losses (N,) float; loss () float. dz may be z
// itself: a thread reads a number before it writes there, and nobody else reads it.
// A target outside of [0, V) makes the loss NaN, and is read nowhere.
//
// Bytes moved, for elements of e bytes: forward e·N·V, backward 2·e·N·V.
//
// The maximum and the sum are found in one pass: when a larger number comes, what was summed so far
// is made smaller by exp(old − new), and the sum goes on.
//
// Launch: N blocks of 256 threads; the mean, one block of 1024, adds in a fixed order.

#define THREADS 256
#define WARPS (THREADS / WARP)

extern "C" __global__ void __launch_bounds__(256) cross_entropy_rows(
    const element* z, const ID* targets, float* lse, float* losses, float smoothing, int V) {
    __shared__ float peaks[WARPS], totals[WARPS], sums[WARPS];
    long long n = blockIdx.x;
    const element* row = z + n * V;
    float peak = -INFINITY, total = 0.0f, sum = 0.0f;
    for (int v = threadIdx.x * WIDTH; v < V; v += THREADS * WIDTH) {
        float a[WIDTH];
        load(a, row + v);
        float high = a[0];
        #pragma unroll
        for (int i = 1; i < WIDTH; i++) high = fmaxf(high, a[i]);
        if (high > peak) {
            total *= expf(peak - high);
            peak = high;
        }
        float base = peak == -INFINITY ? 0.0f : peak;  // −∞ − (−∞) would be NaN, and not 0
        #pragma unroll
        for (int i = 0; i < WIDTH; i++) total += expf(a[i] - base), sum += a[i];
    }
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float warp_peak = warp_max(peak);
    total = warp_sum(peak == -INFINITY ? total : total * expf(peak - warp_peak));
    sum = warp_sum(sum);
    if (lane == 0) peaks[warp] = warp_peak, totals[warp] = total, sums[warp] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 0; i < WARPS; i++) peak = fmaxf(peak, peaks[i]);
    total = sum = 0.0f;
    for (int i = 0; i < WARPS; i++) {
        total += peaks[i] == -INFINITY ? totals[i] : totals[i] * expf(peaks[i] - peak);
        sum += sums[i];
    }
    float log_total = logf(total);
    long long t = targets[n];
    lse[n] = peak + log_total;
    losses[n] = NAN;
    if (t < 0 || t >= V) return;
    float chosen = to_float(row[t]), loss = log_total - (chosen - peak);
    losses[n] = smoothing > 0.0f ? loss + smoothing * (chosen - sum / (float)V) : loss;
}

extern "C" __global__ void __launch_bounds__(1024) cross_entropy_mean(
    const float* losses, float* loss, int N) {
    __shared__ double part[32];
    double sum = 0.0;
    for (int n = threadIdx.x; n < N; n += 1024) sum += losses[n];
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x >= WARP) return;
    sum = warp_sum(part[threadIdx.x]);
    if (threadIdx.x == 0) *loss = (float)(sum / N);
}

// dz of the block's row.
DEVICE void row_backward(
    const element* z, const ID* targets, const float* lse, element* dz, float scale,
    float smoothing, int V) {
    long long n = blockIdx.x, t = targets[n];
    float log_total = lse[n], others = smoothing / (float)V, target = 1.0f - smoothing + others;
    for (int v = threadIdx.x * WIDTH; v < V; v += THREADS * WIDTH) {
        float a[WIDTH];
        load(a, z + n * V + v);
        #pragma unroll
        for (int i = 0; i < WIDTH; i++)
            a[i] = (expf(a[i] - log_total) - (v + i == t ? target : others)) * scale;
        store(dz + n * V + v, a);
    }
}

extern "C" __global__ void __launch_bounds__(256) cross_entropy_backward(
    const element* z, const ID* targets, const float* lse, element* dz, float scale,
    float smoothing, int V) {
    row_backward(z, targets, lse, dz, scale, smoothing, V);
}

// The same where dloss is known on the GPU only; share is 1 / N.
extern "C" __global__ void __launch_bounds__(256) cross_entropy_backward_of(
    const element* z, const ID* targets, const float* lse, element* dz, const float* dloss,
    float share, float smoothing, int V) {
    row_backward(z, targets, lse, dz, *dloss * share, smoothing, V);
}
