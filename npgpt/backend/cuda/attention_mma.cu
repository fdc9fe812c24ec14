// Causal attention on tensor cores: of bf16 or fp16, with float32 sums, from Ampere on.
//
//     forward    scores = q · k / √D, lse = log Σ exp(scores), y = Σ exp(scores − lse) · v
//     backward   delta = dy · y,  p = exp(scores − lse),  ds = p · (dy · v − delta) / √D
//                dq = Σ_s ds · k,  dk = Σ_t ds · q,  dv = Σ_t p · dy
//
// Shapes, strides and causality: as in attention.cu, with D a multiple of 16 and every row at a
// multiple of 16 bytes. attention_backward_queries also writes delta, which the last kernel reads.
//
// Launch: a block of 4 warps for each tile of 64 rows of one head, as (tiles, heads, B). The rows
// are queries in the forward and for dq, and keys for dk and dv. Each warp owns 16 of them, and
// goes through the tiles of `OTHERS` rows of the other kind. One pattern serves all three:
//     compare    own rows (16, D) with the others (OTHERS, D): a tile of scores in registers
//     mix        the tile as weights (16, OTHERS) of the others (OTHERS, D)
// The result of the first lies in the registers just as the second wants it, rounded to elements:
// no score is ever written, not even to shared memory. For dk and dv the tile is that of the
// transposed scores. Each sum is one warp's, in one order: the same bits every time.
//
// With TURN, q and k come as they are before RoPE, and dq and dk go there: they are turned on their
// way into shared memory, and back on their way out. Nothing turned is ever written. That needs
// S = T, and cos, sin (T, D/2) float, the angles of the places; without TURN nobody reads them.
//
// With DROPS, y = Σ m · exp(scores − lse) · v with dropout's m; and in the backward
// ds = p · (m · dy · v − delta) / √D and dv = Σ_t m · p · dy. The weights of all heads are counted
// from mask_start on, in the order (b, h, t, s); key (1,) lies in the device's memory, see
// dropout.cu. Without DROPS nobody reads it.
//
// Constants: D, TURN, DROPS, and WIDTH, which is 8.

#define TILE 64
#define WARPS 4
#define THREADS (WARPS * WARP)
#define OTHERS (D > 32 ? 32 : 64)  // so that all sums of a backward stay in registers
#define PITCH (D + 8)              // rows of a tile lie an odd number of 16 bytes apart: no two of
                                   // eight rows that are read together share a bank
// How many blocks a multiprocessor should find registers for: they wait for memory in turn.
#define FORWARD_BLOCKS (D > 64 ? 3 : 4)
#define BACKWARD_BLOCKS (D > 64 || __CUDA_ARCH__ >= 1000 ? 2 : 3)
#define LOG2_E 1.44269504f
#define LN_2 0.693147181f

// With DROPS, m for the weight that the query t of a head has for the key s; otherwise 1.
DEVICE float dropped(const Mask& mask, unsigned long long head_start, int t, int s, int S) {
    return DROPS ? mask_at(mask, head_start + (long long)t * S + s) : 1.0f;
}

// How many vectors of 8 channels a thread has of ROWS rows.
#define PARTS(ROWS) ((ROWS * (D / 8) + THREADS - 1) / THREADS)

// ROWS rows of a head from `first` on, into registers; zeros where there are none. All loads are on
// their way before one is waited for, and what stands between this and `lay` can use the time.
template <int ROWS>
DEVICE void take(
    uint4 (&parts)[PARTS(ROWS)], const element* head, int first, int stop, long long stride) {
    #pragma unroll
    for (int n = 0; n < PARTS(ROWS); n++) {
        int i = n * THREADS + threadIdx.x, row = i / (D / 8), c = i % (D / 8) * 8;
        bool there = row < ROWS && first + row < stop;
        parts[n] = {0, 0, 0, 0};
        if (there) parts[n] = *(const uint4*)(head + (first + row) * stride + c);
    }
}

// … and from there into a tile.
template <int ROWS>
DEVICE void lay(element* tile, const uint4 (&parts)[PARTS(ROWS)]) {
    #pragma unroll
    for (int n = 0; n < PARTS(ROWS); n++) {
        int i = n * THREADS + threadIdx.x, row = i / (D / 8), c = i % (D / 8) * 8;
        if (row < ROWS) *(uint4*)(tile + row * PITCH + c) = parts[n];
    }
}

// Both, for q or k: with TURN, channels c and c + D/2 are turned by the angle of plane c.
template <int ROWS>
DEVICE void fetch_turned(
    element* tile, const element* head, int first, int stop, long long stride, const float* cos,
    const float* sin) {
#if TURN
    const int PAIRS = (ROWS * (D / 16) + THREADS - 1) / THREADS;
    uint4 halves[PAIRS][2];
    #pragma unroll
    for (int n = 0; n < PAIRS; n++) {
        int i = n * THREADS + threadIdx.x, row = i / (D / 16), c = i % (D / 16) * 8;
        halves[n][0] = halves[n][1] = {0, 0, 0, 0};
        if (row >= ROWS || first + row >= stop) continue;
        halves[n][0] = *(const uint4*)(head + (first + row) * stride + c);
        halves[n][1] = *(const uint4*)(head + (first + row) * stride + c + D / 2);
    }
    #pragma unroll
    for (int n = 0; n < PAIRS; n++) {
        int i = n * THREADS + threadIdx.x, row = i / (D / 16), c = i % (D / 16) * 8;
        float x1[8], x2[8], turn[8] = {}, tilt[8] = {};
        if (row >= ROWS) continue;
        load(x1, (const element*)&halves[n][0]);
        load(x2, (const element*)&halves[n][1]);
        if (first + row < stop) {
            load_floats(turn, cos + (first + row) * (D / 2) + c);
            load_floats(tilt, sin + (first + row) * (D / 2) + c);
        }
        #pragma unroll
        for (int j = 0; j < 8; j++) {
            float a = x1[j], b = x2[j];
            x1[j] = a * turn[j] - b * tilt[j];
            x2[j] = b * turn[j] + a * tilt[j];
        }
        store(tile + row * PITCH + c, x1);
        store(tile + row * PITCH + c + D / 2, x2);
    }
#else
    uint4 parts[PARTS(ROWS)];
    take<ROWS>(parts, head, first, stop, stride);
    lay<ROWS>(tile, parts);
#endif
}

// scores (16, OTHERS) = own (16, D) @ othersᵀ.
DEVICE void compare(float (&scores)[OTHERS / 8][4], const element* own, const element* others) {
    int lane = threadIdx.x % WARP;
    #pragma unroll
    for (int n = 0; n < OTHERS / 8; n++)
        #pragma unroll
        for (int i = 0; i < 4; i++) scores[n][i] = 0.0f;
    #pragma unroll
    for (int c = 0; c < D; c += 16) {
        unsigned a[4], b[4];
        load_matrices(a, own + lane % 16 * PITCH + c + lane / 16 * 8);
        #pragma unroll
        for (int n = 0; n < OTHERS / 8; n += 2) {
            int row = n * 8 + lane % 8 + lane / 16 * 8;
            load_matrices(b, others + row * PITCH + c + lane / 8 % 2 * 8);
            multiply_add<element>(scores[n], a, b[0], b[1]);
            multiply_add<element>(scores[n + 1], a, b[2], b[3]);
        }
    }
}

// sums (16, D) += weights (16, OTHERS) @ others.
DEVICE void mix(
    float (&sums)[D / 8][4], const float (&weights)[OTHERS / 8][4], const element* others) {
    int lane = threadIdx.x % WARP;
    #pragma unroll
    for (int k = 0; k < OTHERS / 16; k++) {
        unsigned b[4], a[4] = {
            rounded_pair<element>(weights[2 * k][0], weights[2 * k][1]),
            rounded_pair<element>(weights[2 * k][2], weights[2 * k][3]),
            rounded_pair<element>(weights[2 * k + 1][0], weights[2 * k + 1][1]),
            rounded_pair<element>(weights[2 * k + 1][2], weights[2 * k + 1][3])};
        #pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            load_matrices_across(b, others + (k * 16 + lane % 16) * PITCH + n * 8 + lane / 16 * 8);
            multiply_add<element>(sums[n], a, b[0], b[1]);
            multiply_add<element>(sums[n + 1], a, b[2], b[3]);
        }
    }
}

DEVICE void clear(float (&sums)[D / 8][4]) {
    #pragma unroll
    for (int n = 0; n < D / 8; n++)
        #pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
}

// A lane holds numbers of two rows of its warp's 16, GROUP and GROUP + 8; number i of part n of a
// tile stands in row ROW_OF(i) and column COLUMN_OF(n, i).
#define GROUP (threadIdx.x % WARP / 4)
#define ROW_OF(i) (GROUP + (i) / 2 * 8)
#define COLUMN_OF(n, i) ((n) * 8 + threadIdx.x % 4 * 2 + (i) % 2)

// Write the rows first, first + 1, … of a head that a warp owns.
DEVICE void put(
    const float (&sums)[D / 8][4], element* head, int first, int stop, long long stride) {
    #pragma unroll
    for (int i = 0; i < 4; i += 2) {
        int row = first + ROW_OF(i);
        if (row >= stop) continue;
        #pragma unroll
        for (int n = 0; n < D / 8; n++)
            *(unsigned*)(head + row * stride + COLUMN_OF(n, 0)) =
                rounded_pair<element>(sums[n][i], sums[n][i + 1]);
    }
}

// With TURN, turn the sums back: channels c and c + D/2 of a row are the same lane's.
DEVICE void turn_back(
    float (&sums)[D / 8][4], int first, int stop, const float* cos, const float* sin) {
#if TURN
    #pragma unroll
    for (int n = 0; n < D / 16; n++)
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            int place = first + ROW_OF(i);
            if (place >= stop) continue;
            float turn = cos[place * (D / 2) + COLUMN_OF(n, i)];
            float tilt = sin[place * (D / 2) + COLUMN_OF(n, i)];
            float a = sums[n][i], b = sums[n + D / 16][i];
            sums[n][i] = a * turn + b * tilt;
            sums[n + D / 16][i] = b * turn - a * tilt;
        }
#endif
}

// The sum or the maximum over the four lanes that share a row, in each of them.
DEVICE float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

DEVICE float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

extern "C" __global__ void __launch_bounds__(128, FORWARD_BLOCKS) attention_forward(
    const element* q, const element* k, const element* v, const float* cos, const float* sin,
    element* y, float* lse, float scale,
    const unsigned long long* key, unsigned long long mask_start, unsigned long long least,
    float mask_scale, int T, int S, int H, int G, long long q_batch, long long q_place, long long q_head,
    long long k_batch, long long k_place, long long k_head) {
    SHARED_MEMORY(memory);
    element* queries = (element*)memory;           // (TILE, PITCH)
    element* keys = queries + TILE * PITCH;     // (OTHERS, PITCH)
    element* values = keys + OTHERS * PITCH;    // (OTHERS, PITCH)
    int first = blockIdx.x * TILE, h = blockIdx.y, g = h / (H / G);
    int own = threadIdx.x / WARP * 16;  // the warp's rows of the tile
    long long b = blockIdx.z;
    fetch_turned<TILE>(queries, q + b * q_batch + h * q_head, first, T, q_place, cos, sin);
    float sums[D / 8][4], peak[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    clear(sums);
    float scale2 = scale * LOG2_E;  // 2 to the power of scores · log₂ e is exp(scores)
    Mask mask = {DROPS ? *key : 0, least, mask_scale};
    unsigned long long head_start = mask_start + (b * H + h) * T * S;
    int stop = min(S, first + TILE + S - T);  // no query of the tile sees a key from here on
    for (int s = 0; s < stop; s += OTHERS) {
        uint4 parts[PARTS(OTHERS)];
        take<OTHERS>(parts, v + b * k_batch + g * k_head, s, S, k_place);
        __syncthreads();  // nobody reads the tiles before any more
        fetch_turned<OTHERS>(keys, k + b * k_batch + g * k_head, s, S, k_place, cos, sin);
        lay<OTHERS>(values, parts);
        __syncthreads();
        if (s > first + own + 15 + S - T) continue;  // none of the warp's queries sees these keys
        float scores[OTHERS / 8][4];
        compare(scores, queries + own * PITCH, keys);
        #pragma unroll
        for (int r = 0; r < 2; r++) {
            int t = first + own + GROUP + 8 * r, last = t + S - T;  // the last key that it sees
            float high = peak[r], part = 0.0f;
            #pragma unroll
            for (int n = 0; n < OTHERS / 8; n++)
                #pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; i++) {
                    bool seen = s + COLUMN_OF(n, i) <= last;
                    scores[n][i] = seen ? scores[n][i] * scale2 : -INFINITY;
                    high = fmaxf(high, scores[n][i]);
                }
            high = row_max(high);
            float shrink = fast_exp2(peak[r] - high);
            #pragma unroll
            for (int n = 0; n < OTHERS / 8; n++)
                #pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; i++) {
                    scores[n][i] = fast_exp2(scores[n][i] - high);
                    part += scores[n][i];
                    scores[n][i] *= dropped(mask, head_start, t, s + COLUMN_OF(n, i), S);
                }
            total[r] = total[r] * shrink + row_sum(part);
            peak[r] = high;
            #pragma unroll
            for (int n = 0; n < D / 8; n++) {
                sums[n][2 * r] *= shrink;
                sums[n][2 * r + 1] *= shrink;
            }
        }
        mix(sums, scores, values);
    }
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        int t = first + own + GROUP + 8 * r;
        float share = 1.0f / total[r];
        #pragma unroll
        for (int n = 0; n < D / 8; n++) {
            sums[n][2 * r] *= share;
            sums[n][2 * r + 1] *= share;
        }
        if (threadIdx.x % 4 == 0 && t < T)
            lse[(b * H + h) * T + t] = peak[r] * LN_2 + logf(total[r]);
    }
    put(sums, y + (b * T * H + h) * D, first + own, T, (long long)H * D);
}

extern "C" __global__ void __launch_bounds__(128, BACKWARD_BLOCKS) attention_backward_queries(
    const element* dy, const element* y, const element* q, const element* k, const element* v,
    const float* cos, const float* sin, const float* lse, float* delta, element* dq, float scale,
    const unsigned long long* key, unsigned long long mask_start, unsigned long long least,
    float mask_scale, int T, int S, int H, int G,
    long long q_batch, long long q_place, long long q_head,
    long long k_batch, long long k_place, long long k_head,
    long long dq_batch, long long dq_place, long long dq_head) {
    SHARED_MEMORY(memory);
    element* queries = (element*)memory;            // (TILE, PITCH)
    element* upstream = queries + TILE * PITCH;  // (TILE, PITCH), of dy
    element* keys = upstream + TILE * PITCH;     // (OTHERS, PITCH)
    element* values = keys + OTHERS * PITCH;     // (OTHERS, PITCH)
    int first = blockIdx.x * TILE, h = blockIdx.y, g = h / (H / G);
    int own = threadIdx.x / WARP * 16;
    long long b = blockIdx.z;
    uint4 of_dy[PARTS(TILE)];
    take<TILE>(of_dy, dy + (b * T * H + h) * D, first, T, (long long)H * D);
    fetch_turned<TILE>(queries, q + b * q_batch + h * q_head, first, T, q_place, cos, sin);
    lay<TILE>(upstream, of_dy);
    float sums[D / 8][4], log_total[2], average[2], scale2 = scale * LOG2_E;
    clear(sums);
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        int t = first + own + GROUP + 8 * r;
        long long row = ((b * T + t) * H + h) * D;
        float sum = 0.0f;
        #pragma unroll
        for (int start = 0; start < D; start += 32) {
            int c = start + threadIdx.x % 4 * 8;
            float a[8] = {}, d[8] = {};
            if (t < T && c < D) load(a, y + row + c), load(d, dy + row + c);
            #pragma unroll
            for (int j = 0; j < 8; j++) sum += a[j] * d[j];
        }
        average[r] = row_sum(sum);
        log_total[r] = t < T ? lse[(b * H + h) * T + t] * LOG2_E : 0.0f;
        if (threadIdx.x % 4 == 0 && t < T) delta[(b * H + h) * T + t] = average[r];  // for dk
    }
    Mask mask = {DROPS ? *key : 0, least, mask_scale};
    unsigned long long head_start = mask_start + (b * H + h) * T * S;
    int stop = min(S, first + TILE + S - T);
    for (int s = 0; s < stop; s += OTHERS) {
        uint4 parts[PARTS(OTHERS)];
        take<OTHERS>(parts, v + b * k_batch + g * k_head, s, S, k_place);
        __syncthreads();
        fetch_turned<OTHERS>(keys, k + b * k_batch + g * k_head, s, S, k_place, cos, sin);
        lay<OTHERS>(values, parts);
        __syncthreads();
        if (s > first + own + 15 + S - T) continue;
        float p[OTHERS / 8][4], ds[OTHERS / 8][4];
        compare(p, queries + own * PITCH, keys);
        compare(ds, upstream + own * PITCH, values);
        #pragma unroll
        for (int n = 0; n < OTHERS / 8; n++)
            #pragma unroll
            for (int i = 0; i < 4; i++) {
                int t = first + own + ROW_OF(i), key = s + COLUMN_OF(n, i);
                bool seen = t < T && key <= t + S - T;
                p[n][i] = seen ? fast_exp2(p[n][i] * scale2 - log_total[i / 2]) : 0.0f;
                float m = dropped(mask, head_start, t, key, S);
                ds[n][i] = p[n][i] * (ds[n][i] * m - average[i / 2]) * scale;
            }
        mix(sums, ds, keys);
    }
    turn_back(sums, first + own, T, cos, sin);
    put(sums, dq + b * dq_batch + h * dq_head, first + own, T, dq_place);
}

extern "C" __global__ void __launch_bounds__(128, BACKWARD_BLOCKS) attention_backward_keys(
    const element* dy, const element* q, const element* k, const element* v, const float* cos,
    const float* sin, const float* lse, const float* delta, element* dk, element* dv, float scale,
    const unsigned long long* key, unsigned long long mask_start, unsigned long long least,
    float mask_scale, int T, int S, int H, int G,
    long long q_batch, long long q_place, long long q_head,
    long long k_batch, long long k_place, long long k_head,
    long long dk_batch, long long dk_place, long long dk_head) {
    SHARED_MEMORY(memory);
    element* keys = (element*)memory;                  // (TILE, PITCH)
    element* values = keys + TILE * PITCH;          // (TILE, PITCH)
    element* queries = values + TILE * PITCH;       // (OTHERS, PITCH)
    element* upstream = queries + OTHERS * PITCH;   // (OTHERS, PITCH), of dy
    __shared__ float log_totals[OTHERS], averages[OTHERS];
    int start = blockIdx.x * TILE, g = blockIdx.y, R = H / G;
    int own = threadIdx.x / WARP * 16;
    long long b = blockIdx.z;
    uint4 of_v[PARTS(TILE)];
    take<TILE>(of_v, v + b * k_batch + g * k_head, start, S, k_place);
    fetch_turned<TILE>(keys, k + b * k_batch + g * k_head, start, S, k_place, cos, sin);
    lay<TILE>(values, of_v);
    float dk_sums[D / 8][4], dv_sums[D / 8][4], scale2 = scale * LOG2_E;
    clear(dk_sums);
    clear(dv_sums);
    Mask mask = {DROPS ? *key : 0, least, mask_scale};
    int begin = max(0, start - (S - T)) / OTHERS * OTHERS;  // queries before it see no key of these
    for (int h = g * R; h < (g + 1) * R; h++) {
        unsigned long long head_start = mask_start + (b * H + h) * T * S;
        for (int first = begin; first < T; first += OTHERS) {
            uint4 parts[PARTS(OTHERS)];
            take<OTHERS>(parts, dy + (b * T * H + h) * D, first, T, (long long)H * D);
            long long place = (b * H + h) * T + first + threadIdx.x;
            bool there = threadIdx.x < OTHERS && first + threadIdx.x < T;
            float log_total = there ? lse[place] : 0.0f, average = there ? delta[place] : 0.0f;
            __syncthreads();
            fetch_turned<OTHERS>(
                queries, q + b * q_batch + h * q_head, first, T, q_place, cos, sin);
            lay<OTHERS>(upstream, parts);
            if (threadIdx.x < OTHERS) {
                log_totals[threadIdx.x] = log_total * LOG2_E;
                averages[threadIdx.x] = average;
            }
            __syncthreads();
            if (start + own > first + OTHERS - 1 + S - T) continue;
            float p[OTHERS / 8][4], ds[OTHERS / 8][4];  // rows are keys, columns are queries
            compare(p, keys + own * PITCH, queries);
            compare(ds, values + own * PITCH, upstream);
            #pragma unroll
            for (int n = 0; n < OTHERS / 8; n++)
                #pragma unroll
                for (int i = 0; i < 4; i++) {
                    int column = COLUMN_OF(n, i), t = first + column;
                    int key = start + own + ROW_OF(i);
                    bool seen = t < T && key <= t + S - T;
                    p[n][i] = seen ? fast_exp2(p[n][i] * scale2 - log_totals[column]) : 0.0f;
                    float m = dropped(mask, head_start, t, key, S);
                    ds[n][i] = p[n][i] * (ds[n][i] * m - averages[column]) * scale;
                    p[n][i] *= m;
                }
            mix(dv_sums, p, upstream);
            mix(dk_sums, ds, queries);
        }
    }
    turn_back(dk_sums, start + own, S, cos, sin);
    put(dk_sums, dk + b * dk_batch + g * dk_head, start + own, S, dk_place);
    put(dv_sums, dv + b * dk_batch + g * dk_head, start + own, S, dk_place);
}
