// SwiGLU: each thread has WIDTH gates and their values, and keeps σ in registers.
//
//     forward    y = g · σ · u, with σ = 1 / (1 + exp(−g))
//     backward   dg = dy · u · σ · (1 + g · (1 − σ)),  du = dy · g · σ
//
// Shapes: x, dx (N, 2F) element, the gates g in the first half of a row and the values u in the
// second; y, dy (N, F) element.
//
// Bytes moved, for elements of e bytes: forward 3·e·N·F, backward 5·e·N·F.
//
// Launch: a thread for each WIDTH gates, N·F / WIDTH in all, in blocks of 256.

extern "C" __global__ void __launch_bounds__(256) swiglu_forward(
    const element* x, element* y, int N, int F) {
    unsigned p = blockIdx.x * 256u + threadIdx.x, packs = F / WIDTH;
    unsigned n = p / packs, j = p % packs * WIDTH;
    if (n >= N) return;
    const element* row = x + (long long)n * 2 * F;
    float gate[WIDTH], up[WIDTH];
    load(gate, row + j);
    load(up, row + F + j);
    #pragma unroll
    for (int i = 0; i < WIDTH; i++) up[i] *= gate[i] / (1.0f + expf(-gate[i]));
    store(y + (long long)n * F + j, up);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_backward(
    const element* dy, const element* x, element* dx, int N, int F) {
    unsigned p = blockIdx.x * 256u + threadIdx.x, packs = F / WIDTH;
    unsigned n = p / packs, j = p % packs * WIDTH;
    if (n >= N) return;
    long long start = (long long)n * 2 * F;
    float gate[WIDTH], up[WIDTH], d[WIDTH];
    load(gate, x + start + j);
    load(up, x + start + F + j);
    load(d, dy + (long long)n * F + j);
    #pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        float g = gate[i], sigma = 1.0f / (1.0f + expf(-g));
        gate[i] = d[i] * up[i] * sigma * (1.0f + g * (1.0f - sigma));
        up[i] = d[i] * g * sigma;
    }
    store(dx + start + j, gate);
    store(dx + start + F + j, up);
}
