// What lies between the layers: numbers that are only moved.
//
//     join    y[n] = q[n], k[n], v[n], one after the other
//
// Shapes: q (N, Q), k and v (N, K), y (N, Q + 2K) element.
//
// Bytes moved: what is read and written, once.
//
// Launch: a block for each row, of 128 threads, which take WIDTH numbers at a time.

#define THREADS 128

DEVICE void copy_row(element* to, const element* from, int count) {
    for (int c = threadIdx.x * WIDTH; c < count; c += THREADS * WIDTH) {
#if WIDTH == 1
        to[c] = from[c];
#else
        *(uint4*)(to + c) = *(const uint4*)(from + c);
#endif
    }
}

extern "C" __global__ void __launch_bounds__(128) join(
    const element* q, const element* k, const element* v, element* y, int Q, int K) {
    long long n = blockIdx.x;
    element* row = y + n * (Q + 2 * K);
    copy_row(row, q + n * Q, Q);
    copy_row(row + Q, k + n * K, K);
    copy_row(row + Q + K, v + n * K, K);
}
