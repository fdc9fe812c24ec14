// RoPE: each thread turns WIDTH planes of one head.
//
//     y₁ = x₁ · c − s · x₂,  y₂ = x₂ · c + s · x₁      s = direction · sin; −1 turns back
//
// Shapes: x (B, T, H, D) element, a view whose places and heads lie apart by the given strides, in
// elements, and whose D channels are neighbours; y the same shape without gaps; cos, sin
// (T, D/2) float. x₁ and x₂ are the two halves of D.
//
// Bytes moved, for elements of e bytes: 2·e·B·T·H·D; the tables come from a cache.
//
// Launch: a thread for each WIDTH planes, B·T·H·D / (2·WIDTH) in all, in blocks of 256.

extern "C" __global__ void __launch_bounds__(256) rope(
    const element* x, const float* cos, const float* sin, element* y, float direction,
    int rows, int T, int H, int D, long long batch_stride, long long place_stride,
    long long head_stride) {
    unsigned half = D / 2, packs = half / WIDTH;
    unsigned p = blockIdx.x * 256u + threadIdx.x;
    unsigned row = p / packs, j = p % packs * WIDTH;  // row counts through B, T and H
    if (row >= rows) return;
    unsigned h = row % H, t = row / H % T, b = row / H / T;
    const element* from = x + b * batch_stride + t * place_stride + h * head_stride + j;
    element* to = y + (long long)row * D + j;
    float x1[WIDTH], x2[WIDTH], c[WIDTH], s[WIDTH];
    load(x1, from);
    load(x2, from + half);
    load_floats(c, cos + t * half + j);
    load_floats(s, sin + t * half + j);
    #pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        float a = x1[i], b = x2[i], turn = direction * s[i];
        x1[i] = a * c[i] - b * turn;
        x2[i] = b * c[i] + a * turn;
    }
    store(to, x1);
    store(to + half, x2);
}
