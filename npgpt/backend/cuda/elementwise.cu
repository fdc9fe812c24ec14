// Adding and converting, WIDTH numbers a thread. Bytes moved: what is read and written, once.
//
//     add        y = a + b                         all (n,) element
//     widen      y (n,) float   = x (n,) element
//     narrow     y (n,) element = x (n,) float
//
// Launch: a thread for each WIDTH numbers, in blocks of 256.

#define PLACE ((blockIdx.x * 256LL + threadIdx.x) * WIDTH)

extern "C" __global__ void __launch_bounds__(256) add(
    const element* a, const element* b, element* y, long long n) {
    if (PLACE >= n) return;
    float left[WIDTH], right[WIDTH];
    load(left, a + PLACE);
    load(right, b + PLACE);
    #pragma unroll
    for (int i = 0; i < WIDTH; i++) left[i] += right[i];
    store(y + PLACE, left);
}

extern "C" __global__ void __launch_bounds__(256) widen(
    const element* x, float* y, long long n) {
    if (PLACE >= n) return;
    float a[WIDTH];
    load(a, x + PLACE);
    store_floats(y + PLACE, a);
}

extern "C" __global__ void __launch_bounds__(256) narrow(
    const float* x, element* y, long long n) {
    if (PLACE >= n) return;
    float a[WIDTH];
    load_floats(a, x + PLACE);
    store(y + PLACE, a);
}
