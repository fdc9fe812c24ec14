// A row that all rows of a matrix share: the bias of a linear layer; or, where a row of the matrix
// is a whole text, the table of places.
//
//     add_row    y[r] = x[r] + b, where y may be x itself
//     sum_rows   partial[p] = Σ x[r] over every P-th row r = p, p + P, …
//
// Shapes: x, y (R, C) element; b (C,) element; partial (P, C) float.
//
// Bytes moved, for elements of e bytes: add_row 2·e·R·C; sum_rows e·R·C, and 4·P·C for what
// columns.cu then adds up, in the order of p: so the same bits come out every time.
//
// Launch: blocks of 128 threads, as (tiles of 128 · WIDTH columns, P). A thread has WIDTH columns,
// and goes through every P-th row: it reads b once, or keeps its sums in registers.

#define COLUMN ((blockIdx.x * 128LL + threadIdx.x) * WIDTH)

extern "C" __global__ void __launch_bounds__(128) add_row(
    const element* x, const element* b, element* y, int R, long long C) {
    if (COLUMN >= C) return;
    float shift[WIDTH];
    load(shift, b + COLUMN);
    for (long long r = blockIdx.y; r < R; r += gridDim.y) {
        float a[WIDTH];
        load(a, x + r * C + COLUMN);
        #pragma unroll
        for (int i = 0; i < WIDTH; i++) a[i] += shift[i];
        store(y + r * C + COLUMN, a);
    }
}

extern "C" __global__ void __launch_bounds__(128) sum_rows(
    const element* x, float* partial, int R, long long C) {
    if (COLUMN >= C) return;
    float sum[WIDTH] = {};
    for (long long r = blockIdx.y; r < R; r += gridDim.y) {
        float a[WIDTH];
        load(a, x + r * C + COLUMN);
        #pragma unroll
        for (int i = 0; i < WIDTH; i++) sum[i] += a[i];
    }
    store_floats(partial + blockIdx.y * C + COLUMN, sum);
}
