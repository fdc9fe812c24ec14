// The embedding: rows of a table, and the sum of what comes back to each row.
//
//     forward    x[n] = w[ids[n]]
//     backward   dw[v] = Σ dx[n] over all places n with ids[n] = v, in the order of n
//
// Shapes: ids (N,) ID; w (V, C), x, dx (N, C) element; dw (V, C) float. An id outside of [0, V)
// makes its row of x NaN, and is left out of dw.
//
// Adding every dx[n] to its row at once, atomically, would add in another order each time, and
// round differently. So the places are sorted by their ids first, and a row is added up in order:
//     count     how often each id occurs            integers: any order gives the same counts
//     scan      starts[v], where v's places begin among the sorted ones; starts[V] is how many
//     place     put each place among those of its id, in any order
//     order     put each in its order: as many as are smaller stand before it
//     chunks    add up every CHUNK sorted places; ids that lie within one chunk are done
//     rows      add the parts of those that go on from one chunk to the next; zeros for the others
//
// Bytes moved, for elements of e bytes: forward 2·e·N·C; backward e·N·C + 4·V·C and some integers.
// The order of a very frequent id takes the square of its count, in parallel.
//
// Launch: count, place and order have a thread a place; scan is one block of 1024 threads; chunks
// has a block for each CHUNK places, rows one for each id, both of 64 threads.

#define CHUNK 32
#define BLOCK 64

extern "C" __global__ void __launch_bounds__(64) embedding_forward(
    const ID* ids, const element* w, element* x, int V, int C) {
    long long n = blockIdx.x, v = ids[n];
    for (int c = threadIdx.x * WIDTH; c < C; c += BLOCK * WIDTH) {
        float a[WIDTH];
        if (v >= 0 && v < V) {
            load(a, w + v * C + c);
        } else {
            #pragma unroll
            for (int i = 0; i < WIDTH; i++) a[i] = NAN;
        }
        store(x + n * C + c, a);
    }
}

extern "C" __global__ void __launch_bounds__(256) embedding_count(
    const ID* ids, int* counts, int N, int V) {
    int n = blockIdx.x * 256 + threadIdx.x;
    if (n < N && ids[n] >= 0 && ids[n] < V) atomicAdd(&counts[ids[n]], 1);
}

// Each thread adds up a stretch of counts; the threads' sums are added up to where each begins.
extern "C" __global__ void __launch_bounds__(1024) embedding_scan(
    const int* counts, int* starts, int* next, int V) {
    __shared__ int sums[1024];
    int stretch = (V + 1023) / 1024, first = threadIdx.x * stretch, sum = 0;
    int last = min(first + stretch, V);
    for (int v = first; v < last; v++) sum += counts[v];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int reach = 1; reach < 1024; reach *= 2) {
        int before = threadIdx.x >= reach ? sums[threadIdx.x - reach] : 0;
        __syncthreads();
        sums[threadIdx.x] += before;
        __syncthreads();
    }
    int start = sums[threadIdx.x] - sum;
    for (int v = first; v < last; v++) {
        starts[v] = start;
        next[v] = start;
        start += counts[v];
    }
    if (threadIdx.x == 1023) starts[V] = sums[1023];
}

extern "C" __global__ void __launch_bounds__(256) embedding_place(
    const ID* ids, int* next, int* places, int N, int V) {
    int n = blockIdx.x * 256 + threadIdx.x;
    if (n < N && ids[n] >= 0 && ids[n] < V) places[atomicAdd(&next[ids[n]], 1)] = n;
}

extern "C" __global__ void __launch_bounds__(256) embedding_order(
    const ID* ids, const int* starts, const int* places, int* ordered, int V) {
    int slot = blockIdx.x * 256 + threadIdx.x;
    if (slot >= starts[V]) return;
    int n = places[slot], v = (int)ids[n], smaller = 0;
    for (int other = starts[v]; other < starts[v + 1]; other++) smaller += places[other] < n;
    ordered[starts[v] + smaller] = n;
}

// parts (2, chunks, C): of each chunk, the sum for the id that it goes on with at its beginning,
// and for the one that goes on after its end.
extern "C" __global__ void __launch_bounds__(64) embedding_chunks(
    const element* dx, const ID* ids, const int* starts, const int* ordered, float* dw,
    float* parts, int V, int C) {
    __shared__ int places[CHUNK], tokens[CHUNK];
    int first = blockIdx.x * CHUNK, count = min(CHUNK, starts[V] - first);
    if (count <= 0) return;  // the whole block
    if (threadIdx.x < count) {
        places[threadIdx.x] = ordered[first + threadIdx.x];
        tokens[threadIdx.x] = (int)ids[places[threadIdx.x]];
    }
    __syncthreads();
    for (int c = threadIdx.x * WIDTH; c < C; c += BLOCK * WIDTH) {
        float sum[WIDTH], a[WIDTH];
        #pragma unroll
        for (int i = 0; i < WIDTH; i++) sum[i] = 0.0f;
        for (int s = 0; s < count; s++) {
            load(a, dx + (long long)places[s] * C + c);
            #pragma unroll
            for (int i = 0; i < WIDTH; i++) sum[i] += a[i];
            int v = tokens[s];
            if (s + 1 < count && tokens[s + 1] == v) continue;
            bool began_before = starts[v] < first, goes_on = starts[v + 1] > first + count;
            float* to = dw + (long long)v * C;
            if (began_before) to = parts + (long long)blockIdx.x * C;
            else if (goes_on) to = parts + ((long long)gridDim.x + blockIdx.x) * C;
            store_floats(to + c, sum);
            #pragma unroll
            for (int i = 0; i < WIDTH; i++) sum[i] = 0.0f;
        }
    }
}

extern "C" __global__ void __launch_bounds__(64) embedding_rows(
    const int* starts, const float* parts, float* dw, int chunks, int C) {
    int v = blockIdx.x, start = starts[v], stop = starts[v + 1];
    int from = start / CHUNK, to = (stop - 1) / CHUNK;
    if (start < stop && from == to) return;  // embedding_chunks has written it
    for (int c = threadIdx.x * WIDTH; c < C; c += BLOCK * WIDTH) {
        float sum[WIDTH], a[WIDTH];
        #pragma unroll
        for (int i = 0; i < WIDTH; i++) sum[i] = 0.0f;
        if (start < stop) {
            load_floats(sum, parts + ((long long)chunks + from) * C + c);
            #pragma unroll 1
            for (int chunk = from + 1; chunk <= to; chunk++) {
                load_floats(a, parts + (long long)chunk * C + c);
                #pragma unroll
                for (int i = 0; i < WIDTH; i++) sum[i] += a[i];
            }
        }
        store_floats(dw + (long long)v * C + c, sum);
    }
}
