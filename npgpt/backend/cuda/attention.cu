// Causal attention in float32 arithmetic, a tile of scores at a time, which is never written.
//
//     forward    scores = q · k / √D, lse = log Σ exp(scores), y = Σ exp(scores − lse) · v
//     backward   delta = dy · y,  p = exp(scores − lse),  ds = p · (dy · v − delta) / √D
//                dq = Σ_s ds · k,  dk = Σ_t ds · q,  dv = Σ_t p · dy
//
// Shapes: q, y, dy, dq (B, T, H, D) element; k, v, dk, dv (B, S, G, D) element; lse, delta
// (B, H, T) float. The query t sees the keys up to t + S − T. The query head h reads the key head
// h / (H / G). q, k and v may be views, whose D channels are neighbours: their strides are given in
// elements for the axes batch, place and head; k and v share theirs, and so do dk and dv.
//
// attention_backward_queries also writes delta, which attention_backward_keys reads.
//
// With DROPS, y = Σ m · exp(scores − lse) · v with dropout's m; and in the backward
// ds = p · (m · dy · v − delta) / √D and dv = Σ_t m · p · dy. The weights of all heads are counted
// from mask_start on, in the order (b, h, t, s); key (1,) lies in the device's memory, see
// dropout.cu. Without DROPS nobody reads it.
//
// Launch: a block of 256 threads for each tile of rows of one head, as (tiles, heads, B). The rows
// are queries in the forward and for dq, and keys for dk and dv; the block goes through the tiles
// of the other kind that they meet. So each number of a result is one thread's, who adds up in one
// order. The threads are a square of 16 · 16: of a product, thread (i, j) has the rows i, i + 16, …
// and the columns j, j + 16, …
//
// Memory: T numbers a head beside inputs and results. Bytes moved: the rows once, and the
// other kind once for each tile of rows, mostly from the second cache.
//
// Constants: PADDED, the channels of a head with zeros behind the last, a multiple of 16; DROPS.

#define SIDE 16
#define THREADS (SIDE * SIDE)
#define LENGTH (PADDED + 1)  // of a row in shared memory: odd, so that a column lies in all banks
#define FORWARD_QUERIES 64   // rows of a tile: the tiles of a block take at most 64 KB together
#define FORWARD_KEYS 32
#define QUERIES 32
#define KEYS (PADDED > 96 ? 16 : 32)
#define OWN_QUERIES (QUERIES / SIDE)
#define OWN_KEYS (KEYS / SIDE)
#define OWN_CHANNELS (PADDED / SIDE)
#define ROW (threadIdx.x / SIDE)
#define COLUMN (threadIdx.x % SIDE)

// With DROPS, m for the weight that the query t of a head has for the key s; otherwise 1.
DEVICE float dropped(const Mask& mask, unsigned long long head_start, int t, int s, int S) {
    return DROPS ? mask_at(mask, head_start + (long long)t * S + s) : 1.0f;
}

// Rows first, first + 1, … of a head as floats into a tile of ROWS rows; zeros beyond the last.
template <int ROWS>
DEVICE void fetch(
    float* tile, const element* head, int first, int stop, long long stride, int D) {
    for (int i = threadIdx.x; i < ROWS * (PADDED / WIDTH); i += THREADS) {
        int row = i / (PADDED / WIDTH), c = i % (PADDED / WIDTH) * WIDTH;
        float a[WIDTH];
        #pragma unroll
        for (int j = 0; j < WIDTH; j++) a[j] = 0.0f;
        if (first + row < stop && c < D) load(a, head + (first + row) * stride + c);
        #pragma unroll
        for (int j = 0; j < WIDTH; j++) tile[row * LENGTH + c + j] = a[j];
    }
}

// scores = left @ rightᵀ, over the channels.
template <int ROWS, int COLUMNS>
DEVICE void compare(float (&scores)[ROWS][COLUMNS], const float* left, const float* right) {
    #pragma unroll
    for (int i = 0; i < ROWS; i++)
        #pragma unroll
        for (int j = 0; j < COLUMNS; j++) scores[i][j] = 0.0f;
    #pragma unroll 1
    for (int start = 0; start < PADDED; start += SIDE) {
        float part[ROWS][COLUMNS] = {};  // short sums of sums: one long sum would round more
        #pragma unroll 4
        for (int c = start; c < start + SIDE; c++) {
            float a[ROWS], b[COLUMNS];
            #pragma unroll
            for (int i = 0; i < ROWS; i++) a[i] = left[(ROW + i * SIDE) * LENGTH + c];
            #pragma unroll
            for (int j = 0; j < COLUMNS; j++) b[j] = right[(COLUMN + j * SIDE) * LENGTH + c];
            #pragma unroll
            for (int i = 0; i < ROWS; i++)
                #pragma unroll
                for (int j = 0; j < COLUMNS; j++) part[i][j] += a[i] * b[j];
        }
        #pragma unroll
        for (int i = 0; i < ROWS; i++)
            #pragma unroll
            for (int j = 0; j < COLUMNS; j++) scores[i][j] += part[i][j];
    }
}

// sums += weights @ tile, over `depth` rows of the tile. The weights (rows, depth) have a row every
// `pitch` numbers, or with ACROSS a column.
template <int ROWS, bool ACROSS>
DEVICE void mix(
    float (&sums)[ROWS][OWN_CHANNELS], const float* weights, int pitch, const float* tile,
    int depth) {
    #pragma unroll 4
    for (int k = 0; k < depth; k++) {
        float a[ROWS], b[OWN_CHANNELS];
        #pragma unroll
        for (int i = 0; i < ROWS; i++)
            a[i] = weights[ACROSS ? k * pitch + ROW + i * SIDE : (ROW + i * SIDE) * pitch + k];
        #pragma unroll
        for (int j = 0; j < OWN_CHANNELS; j++) b[j] = tile[k * LENGTH + COLUMN + j * SIDE];
        #pragma unroll
        for (int i = 0; i < ROWS; i++)
            #pragma unroll
            for (int j = 0; j < OWN_CHANNELS; j++) sums[i][j] += a[i] * b[j];
    }
}

template <int ROWS>
DEVICE void clear(float (&sums)[ROWS][OWN_CHANNELS]) {
    #pragma unroll
    for (int i = 0; i < ROWS; i++)
        #pragma unroll
        for (int j = 0; j < OWN_CHANNELS; j++) sums[i][j] = 0.0f;
}

// Write a thread's numbers of the rows first, first + 1, … of a head.
template <int ROWS>
DEVICE void put(
    const float (&sums)[ROWS][OWN_CHANNELS], element* head, int first, int stop, long long stride,
    int D) {
    #pragma unroll
    for (int i = 0; i < ROWS; i++)
        #pragma unroll
        for (int j = 0; j < OWN_CHANNELS; j++) {
            int row = first + ROW + i * SIDE, c = COLUMN + j * SIDE;
            if (row < stop && c < D) head[row * stride + c] = rounded<element>(sums[i][j]);
        }
}

// The sum or the maximum over the SIDE threads that share a row, in each of them.
DEVICE float row_sum(float x) {
    #pragma unroll
    for (int m = SIDE / 2; m > 0; m /= 2) x += __shfl_xor_sync(ALL_LANES, x, m);
    return x;
}

DEVICE float row_max(float x) {
    #pragma unroll
    for (int m = SIDE / 2; m > 0; m /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, m));
    return x;
}

extern "C" __global__ void __launch_bounds__(256) attention_forward(
    const element* q, const element* k, const element* v, element* y, float* lse, float scale,
    const unsigned long long* key, unsigned long long mask_start, unsigned long long least,
    float mask_scale, int T, int S, int H, int G, int D, long long q_batch, long long q_place, long long q_head,
    long long k_batch, long long k_place, long long k_head) {
    const int ROWS = FORWARD_QUERIES / SIDE, COLUMNS = FORWARD_KEYS / SIDE;
    SHARED_MEMORY(memory);
    float* queries = (float*)memory;                   // (FORWARD_QUERIES, LENGTH)
    float* keys = queries + FORWARD_QUERIES * LENGTH;  // (FORWARD_KEYS, LENGTH), then the values
    float* weights = keys + FORWARD_KEYS * LENGTH;     // (FORWARD_QUERIES, FORWARD_KEYS + 1)
    int first = blockIdx.x * FORWARD_QUERIES, h = blockIdx.y, g = h / (H / G);
    long long b = blockIdx.z;
    const element* key_head = k + b * k_batch + g * k_head;
    const element* value_head = v + b * k_batch + g * k_head;
    fetch<FORWARD_QUERIES>(queries, q + b * q_batch + h * q_head, first, T, q_place, D);
    float sums[ROWS][OWN_CHANNELS], peak[ROWS], total[ROWS];
    clear(sums);
    #pragma unroll
    for (int i = 0; i < ROWS; i++) peak[i] = -INFINITY, total[i] = 0.0f;
    Mask mask = {DROPS ? *key : 0, least, mask_scale};
    unsigned long long head_start = mask_start + (b * H + h) * T * S;
    int stop = min(S, first + FORWARD_QUERIES + S - T);  // from here on no query sees a key
    for (int s = 0; s < stop; s += FORWARD_KEYS) {
        fetch<FORWARD_KEYS>(keys, key_head, s, S, k_place, D);
        __syncthreads();
        float scores[ROWS][COLUMNS];
        compare(scores, queries, keys);
        #pragma unroll
        for (int i = 0; i < ROWS; i++) {
            int t = first + ROW + i * SIDE;
            float high = peak[i], part = 0.0f;
            #pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                bool seen = s + COLUMN + j * SIDE <= t + S - T;
                scores[i][j] = seen ? __fmul_rn(scores[i][j], scale) : -INFINITY;
                high = fmaxf(high, scores[i][j]);
            }
            high = row_max(high);
            float shrink = expf(peak[i] - high);
            #pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                float weight = expf(scores[i][j] - high);
                part += weight;
                weight *= dropped(mask, head_start, t, s + COLUMN + j * SIDE, S);
                weights[(ROW + i * SIDE) * (FORWARD_KEYS + 1) + COLUMN + j * SIDE] = weight;
            }
            total[i] = total[i] * shrink + row_sum(part);
            peak[i] = high;
            #pragma unroll
            for (int j = 0; j < OWN_CHANNELS; j++) sums[i][j] *= shrink;
        }
        __syncthreads();  // the weights are there, and nobody reads the keys any more
        fetch<FORWARD_KEYS>(keys, value_head, s, S, k_place, D);
        __syncthreads();
        mix<ROWS, false>(sums, weights, FORWARD_KEYS + 1, keys, FORWARD_KEYS);
        __syncthreads();  // nobody reads values or weights any more
    }
    #pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int t = first + ROW + i * SIDE;
        #pragma unroll
        for (int j = 0; j < OWN_CHANNELS; j++) sums[i][j] /= total[i];
        if (COLUMN == 0 && t < T) lse[(b * H + h) * T + t] = peak[i] + logf(total[i]);
    }
    put(sums, y + (b * T * H + h) * D, first, T, (long long)H * D, D);
}

// p · m and ds for a tile of scores, in place of the scores and of dy · v. Queries that do not
// exist have no weight.
template <int ROWS, int COLUMNS>
DEVICE void differentiate(
    float (&scores)[ROWS][COLUMNS], float (&slopes)[ROWS][COLUMNS], const float* lse,
    const float* delta, int first, int s, int T, int S, float scale, const Mask& mask,
    unsigned long long head_start) {
    #pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int t = first + ROW + i * SIDE;
        float log_total = t < T ? lse[t] : 0.0f, average = t < T ? delta[t] : 0.0f;
        #pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            int key = s + COLUMN + j * SIDE;
            float score = __fmul_rn(scores[i][j], scale);  // rounded, as those that lse is made of
            float weight = t < T && key <= t + S - T ? expf(score - log_total) : 0.0f;
            float m = dropped(mask, head_start, t, key, S);
            scores[i][j] = weight * m;
            slopes[i][j] = weight * (slopes[i][j] * m - average) * scale;
        }
    }
}

template <int ROWS, int COLUMNS>
DEVICE void keep(float* to, const float (&from)[ROWS][COLUMNS]) {
    #pragma unroll
    for (int i = 0; i < ROWS; i++)
        #pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            to[(ROW + i * SIDE) * (KEYS + 1) + COLUMN + j * SIDE] = from[i][j];
}

extern "C" __global__ void __launch_bounds__(256) attention_backward_queries(
    const element* dy, const element* y, const element* q, const element* k, const element* v,
    const float* lse, float* delta, element* dq, float scale,
    const unsigned long long* key, unsigned long long mask_start, unsigned long long least,
    float mask_scale, int T, int S, int H, int G, int D,
    long long q_batch, long long q_place, long long q_head,
    long long k_batch, long long k_place, long long k_head,
    long long dq_batch, long long dq_place, long long dq_head) {
    SHARED_MEMORY(memory);
    float* queries = (float*)memory;             // (QUERIES, LENGTH)
    float* upstream = queries + QUERIES * LENGTH;  // (QUERIES, LENGTH), of dy
    float* keys = upstream + QUERIES * LENGTH;   // (KEYS, LENGTH)
    float* values = keys + KEYS * LENGTH;        // (KEYS, LENGTH)
    float* slopes = values + KEYS * LENGTH;      // (QUERIES, KEYS + 1), of ds
    int first = blockIdx.x * QUERIES, h = blockIdx.y, g = h / (H / G);
    long long b = blockIdx.z;
    const float* log_totals = lse + (b * H + h) * T;
    float* averages = delta + (b * H + h) * T;
    #pragma unroll
    for (int i = 0; i < OWN_QUERIES; i++) {  // first delta: all threads of a row have a part of it
        int t = first + ROW + i * SIDE;
        long long row = ((b * T + t) * H + h) * D;
        float sum = 0.0f;
        for (int c = COLUMN * WIDTH; t < T && c < D; c += SIDE * WIDTH) {
            float a[WIDTH], d[WIDTH];
            load(a, y + row + c);
            load(d, dy + row + c);
            #pragma unroll
            for (int j = 0; j < WIDTH; j++) sum += a[j] * d[j];
        }
        sum = row_sum(sum);
        if (COLUMN == 0 && t < T) averages[t] = sum;  // read after the next barrier, and for dk
    }
    fetch<QUERIES>(queries, q + b * q_batch + h * q_head, first, T, q_place, D);
    fetch<QUERIES>(upstream, dy + (b * T * H + h) * D, first, T, (long long)H * D, D);
    float sums[OWN_QUERIES][OWN_CHANNELS];
    clear(sums);
    Mask mask = {DROPS ? *key : 0, least, mask_scale};
    unsigned long long head_start = mask_start + (b * H + h) * T * S;
    int stop = min(S, first + QUERIES + S - T);
    for (int s = 0; s < stop; s += KEYS) {
        fetch<KEYS>(keys, k + b * k_batch + g * k_head, s, S, k_place, D);
        fetch<KEYS>(values, v + b * k_batch + g * k_head, s, S, k_place, D);
        __syncthreads();
        float p[OWN_QUERIES][OWN_KEYS], ds[OWN_QUERIES][OWN_KEYS];
        compare(p, queries, keys);
        compare(ds, upstream, values);
        differentiate(p, ds, log_totals, averages, first, s, T, S, scale, mask, head_start);
        keep(slopes, ds);
        __syncthreads();
        mix<OWN_QUERIES, false>(sums, slopes, KEYS + 1, keys, KEYS);
        __syncthreads();
    }
    put(sums, dq + b * dq_batch + h * dq_head, first, T, dq_place, D);
}

extern "C" __global__ void __launch_bounds__(256, 2) attention_backward_keys(
    const element* dy, const element* q, const element* k, const element* v, const float* lse,
    const float* delta, element* dk, element* dv, float scale,
    const unsigned long long* key, unsigned long long mask_start, unsigned long long least,
    float mask_scale, int T, int S, int H, int G, int D,
    long long q_batch, long long q_place, long long q_head,
    long long k_batch, long long k_place, long long k_head,
    long long dk_batch, long long dk_place, long long dk_head) {
    SHARED_MEMORY(memory);
    float* queries = (float*)memory;             // (QUERIES, LENGTH)
    float* upstream = queries + QUERIES * LENGTH;  // (QUERIES, LENGTH), of dy
    float* keys = upstream + QUERIES * LENGTH;   // (KEYS, LENGTH)
    float* values = keys + KEYS * LENGTH;        // (KEYS, LENGTH)
    float* slopes = values + KEYS * LENGTH;      // (QUERIES, KEYS + 1), of ds
    float* weights = slopes + QUERIES * (KEYS + 1);  // (QUERIES, KEYS + 1), of p
    int s = blockIdx.x * KEYS, g = blockIdx.y, R = H / G;
    long long b = blockIdx.z;
    fetch<KEYS>(keys, k + b * k_batch + g * k_head, s, S, k_place, D);
    fetch<KEYS>(values, v + b * k_batch + g * k_head, s, S, k_place, D);
    float dk_sums[OWN_KEYS][OWN_CHANNELS], dv_sums[OWN_KEYS][OWN_CHANNELS];
    clear(dk_sums);
    clear(dv_sums);
    Mask mask = {DROPS ? *key : 0, least, mask_scale};
    int start = max(0, s - (S - T)) / QUERIES * QUERIES;  // queries before it see none of the keys
    for (int h = g * R; h < (g + 1) * R; h++) {
        for (int first = start; first < T; first += QUERIES) {
            fetch<QUERIES>(queries, q + b * q_batch + h * q_head, first, T, q_place, D);
            fetch<QUERIES>(upstream, dy + (b * T * H + h) * D, first, T, (long long)H * D, D);
            __syncthreads();
            float p[OWN_QUERIES][OWN_KEYS], ds[OWN_QUERIES][OWN_KEYS];
            compare(p, queries, keys);
            compare(ds, upstream, values);
            const float* log_totals = lse + (b * H + h) * T;
            const float* averages = delta + (b * H + h) * T;
            unsigned long long head_start = mask_start + (b * H + h) * T * S;
            differentiate(p, ds, log_totals, averages, first, s, T, S, scale, mask, head_start);
            keep(weights, p);
            keep(slopes, ds);
            __syncthreads();
            mix<OWN_KEYS, true>(dv_sums, weights, KEYS + 1, upstream, QUERIES);
            mix<OWN_KEYS, true>(dk_sums, slopes, KEYS + 1, queries, QUERIES);
            __syncthreads();
        }
    }
    put(dk_sums, dk + b * dk_batch + g * dk_head, s, S, dk_place, D);
    put(dv_sums, dv + b * dk_batch + g * dk_head, s, S, dk_place, D);
}
