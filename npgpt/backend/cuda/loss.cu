// Softmax cross-entropy, a block a row of logits.
//
//     forward    lse  = log Σᵥ exp(zᵥ) = m + log Σᵥ exp(zᵥ − m), with m = max z
//                loss = mean over rows of lse − z_target
//     backward   dzᵥ = (exp(zᵥ − lse) − qᵥ) · scale, with qᵥ = [v = target]
//     in place   both of them, and dz is written over z
//
// With smoothing ε, which is 0 otherwise,
//     forward    loss = mean over rows of (lse − z_target) + ε · (z_target − mean(z))
//     backward   qᵥ = (1 − ε) · [v = target] + ε / V
//
// Shapes: z, dz (N, V) element; targets (N,) ID; lse, losses (N,) float; loss () float. In place, a
// number is read only by the thread that then writes there; the target's by all, before any writes.
// A target outside of [0, V) makes the loss NaN, and is read nowhere.
//
// Bytes moved, for elements of e bytes: forward e·N·V, backward 2·e·N·V, in place 2·e·N·V.
//
// The maximum and the sum are found in one pass: when a larger number comes, what was summed so far
// is made smaller by exp(old − new), and the sum goes on. In place, a second pass follows as soon as
// lse is known. So the block keeps the first numbers of its row in shared memory; the others
// were read a moment ago, and are still in the GPU's cache.
//
// Vectors of WIDTH numbers begin at multiples of 16 bytes, whatever V is. A row that begins
// elsewhere shares its first vector with the row before, which has `shift` numbers of it. Vectors
// that are not all the row's own are read and written number by number.
//
// Launch: N blocks of THREADS; in place, with shared memory for `kept` elements; the mean, one block
// of 1024, adds in a fixed order.

#define WARPS (THREADS / WARP)

#if WIDTH == 1
typedef element Vector;
#else
typedef uint4 Vector;
#endif

// exp(x), or for elements of 16 bits something as near to it as their rounding leaves.
DEVICE float power(float x) { return sizeof(element) == 2 ? fast_exp2(x * 1.44269504f) : expf(x); }

// How many numbers the row before has of the vector in which a row begins.
DEVICE int shift_of(const element* row) {
    return (unsigned long long)row / sizeof(element) % WIDTH;
}

DEVICE bool is_whole(int v, int V) { return v >= 0 && v <= V - WIDTH; }
DEVICE bool is_inside(int v, int V) { return v >= 0 && v < V; }

// The target of the block's row, or −1 where there is no such number.
DEVICE int target_of(const ID* targets, int V) {
    ID t = targets[blockIdx.x];
    return t >= 0 && t < V ? (int)t : -1;
}

struct Row { float lse, loss, chosen; };

// Read the block's row, and put what lies in its first `kept` places into `held`. All threads get
// the same.
DEVICE Row read_row(
    const element* row, int t, float smoothing, int V, element* held = 0, int kept = 0) {
    __shared__ float peaks[WARPS], totals[WARPS], sums[WARPS];
    float chosen = t < 0 ? NAN : to_float(row[t]);  // in place, it is gone behind the barrier
    float peak = -INFINITY, total = 0.0f, sum = 0.0f;
    int shift = shift_of(row);
    for (int place = threadIdx.x * WIDTH; place < shift + V; place += THREADS * WIDTH) {
        float a[WIDTH];
        int v = place - shift;
        if (is_whole(v, V)) {
            Vector vector = *(const Vector*)(row + v);
            if (place < kept) *(Vector*)(held + place) = vector;
            load(a, (const element*)&vector);
            #pragma unroll
            for (int i = 0; i < WIDTH; i++) sum += a[i];
        } else {
            #pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                a[i] = -INFINITY;
                if (is_inside(v + i, V)) a[i] = to_float(row[v + i]), sum += a[i];
            }
        }
        float high = a[0];
        #pragma unroll
        for (int i = 1; i < WIDTH; i++) high = fmaxf(high, a[i]);
        if (high > peak) {
            total *= power(peak - high);
            peak = high;
        }
        float base = peak == -INFINITY ? 0.0f : peak;  // −∞ − (−∞) would be NaN, and not 0
        #pragma unroll
        for (int i = 0; i < WIDTH; i++) total += power(a[i] - base);
    }
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float warp_peak = warp_max(peak);
    total = warp_sum(peak == -INFINITY ? total : total * power(peak - warp_peak));
    sum = warp_sum(sum);
    if (lane == 0) peaks[warp] = warp_peak, totals[warp] = total, sums[warp] = sum;
    __syncthreads();
    peak = -INFINITY;
    for (int i = 0; i < WARPS; i++) peak = fmaxf(peak, peaks[i]);
    total = sum = 0.0f;
    for (int i = 0; i < WARPS; i++) {
        total += peaks[i] == -INFINITY ? totals[i] : totals[i] * power(peaks[i] - peak);
        sum += sums[i];
    }
    float log_total = logf(total), loss = log_total - (chosen - peak);
    if (smoothing > 0.0f) loss += smoothing * (chosen - sum / (float)V);
    return {peak + log_total, loss, chosen};
}

// dz of the block's row, whose first `kept` places are in `held`, and whose target has the logit
// `chosen`.
DEVICE void write_slopes(
    const element* row, element* dz, int t, float chosen, float lse, float scale, float smoothing,
    int V, const element* held = 0, int kept = 0) {
    float others = smoothing / (float)V, target = 1.0f - smoothing + others, less = others * scale;
    int shift = shift_of(row);
    for (int place = threadIdx.x * WIDTH; place < shift + V; place += THREADS * WIDTH) {
        float a[WIDTH];
        int v = place - shift;
        bool whole = is_whole(v, V);
        if (whole && place < kept) load(a, held + place);
        else if (whole) load(a, row + v);
        else {
            #pragma unroll
            for (int i = 0; i < WIDTH; i++) a[i] = is_inside(v + i, V) ? to_float(row[v + i]) : 0.0f;
        }
        #pragma unroll
        for (int i = 0; i < WIDTH; i++) a[i] = power(a[i] - lse) * scale - less;
        if (whole) store(dz + v, a);
        else {
            #pragma unroll
            for (int i = 0; i < WIDTH; i++)
                if (is_inside(v + i, V)) dz[v + i] = rounded<element>(a[i]);
        }
    }
    // Over the target's number writes who has written it: nobody knows in which order two would.
    if (t >= 0 && (shift + t) / WIDTH % THREADS == threadIdx.x)
        dz[t] = rounded<element>((power(chosen - lse) - target) * scale);
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_rows(
    const element* z, const ID* targets, float* lse, float* losses, float smoothing, int V) {
    long long n = blockIdx.x;
    Row row = read_row(z + n * V, target_of(targets, V), smoothing, V);
    if (threadIdx.x == 0) lse[n] = row.lse, losses[n] = row.loss;
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

DEVICE void row_backward(
    const element* z, const ID* targets, const float* lse, element* dz, float scale,
    float smoothing, int V) {
    long long n = blockIdx.x, first = n * V;
    int t = target_of(targets, V);
    float chosen = t < 0 ? NAN : to_float(z[first + t]);
    write_slopes(z + first, dz + first, t, chosen, lse[n], scale, smoothing, V);
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_backward(
    const element* z, const ID* targets, const float* lse, element* dz, float scale,
    float smoothing, int V) {
    row_backward(z, targets, lse, dz, scale, smoothing, V);
}

// The same where dloss is known on the GPU only; share is 1 / N.
extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_backward_of(
    const element* z, const ID* targets, const float* lse, element* dz, const float* dloss,
    float share, float smoothing, int V) {
    row_backward(z, targets, lse, dz, *dloss * share, smoothing, V);
}

DEVICE void row_in_place(
    element* z, const ID* targets, float* losses, float scale, float smoothing, int V, int kept) {
    SHARED_MEMORY(memory);
    element* held = (element*)memory;
    element* row = z + blockIdx.x * (long long)V;
    int t = target_of(targets, V);
    Row found = read_row(row, t, smoothing, V, held, kept);
    if (threadIdx.x == 0) losses[blockIdx.x] = found.loss;
    write_slopes(row, row, t, found.chosen, found.lse, scale, smoothing, V, held, kept);
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_in_place(
    element* z, const ID* targets, float* losses, float scale, float smoothing, int V, int kept) {
    row_in_place(z, targets, losses, scale, smoothing, V, kept);
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_in_place_of(
    element* z, const ID* targets, float* losses, const float* dloss, float share,
    float smoothing, int V, int kept) {
    row_in_place(z, targets, losses, *dloss * share, smoothing, V, kept);
}
