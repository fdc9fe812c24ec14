// Dropout: the mask is made of each number's place, in registers, and never written.
//
//     y = x · m, with m = mask_at(start + place) of common.cuh: 0, or scale = 1 / (1 − rate)
//
// The backward is the same, with dy for x.
//
// Shapes: x, y (n,) element; key (1,), in the device's memory: a recorded graph of a step, which
// repeats the numbers that it was launched with, finds another key there in the next step.
//
// Bytes moved, for elements of e bytes: 2·e·n.
//
// Launch: a thread for each WIDTH numbers, in blocks of 256.

#define PLACE ((blockIdx.x * 256LL + threadIdx.x) * WIDTH)

extern "C" __global__ void __launch_bounds__(256) dropout(
    const element* x, element* y, const unsigned long long* key, unsigned long long start,
    unsigned long long least, float scale, long long n) {
    if (PLACE >= n) return;
    Mask mask = {*key, least, scale};
    float a[WIDTH];
    load(a, x + PLACE);
    #pragma unroll
    for (int i = 0; i < WIDTH; i++) a[i] *= mask_at(mask, start + PLACE + i);
    store(y + PLACE, a);
}
