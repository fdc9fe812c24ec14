// ReLU and GELU: each thread has WIDTH channels, and keeps Φ or the sigmoid in registers.
//
//     relu       y = x where x > 0, else 0            dx = dy where y > 0, else 0
//     gelu       y = x · Φ(x)                         dx = dy · (Φ(x) + x · φ(x))
//     gelu_tanh  y = x · σ(v)                         dx = dy · (σ + x · σ · (1 − σ) · v′)
//
// with Φ(x) = ½ + ½ erf(x / √2), φ(x) = exp(−x²/2) / √2π, and v = √(8/π) · (x + 0.044715 x³), as
// ½ (1 + tanh u) is the sigmoid of 2u.
//
// Shapes: x, y, dy, dx (n,) element. A backward is given what its forward kept: y of relu, and x
// of the others.
//
// Bytes moved, for elements of e bytes: forward 2·e·n, backward 3·e·n.
//
// Launch: a thread for each WIDTH numbers, in blocks of 256.
//
// Constants: BEND, which of the three; SLOPE, its slope as a function of what was kept.

#define PLACE ((blockIdx.x * 256LL + threadIdx.x) * WIDTH)
#define ROOT_HALF 0.70710678f  // 1/√2
#define PEAK 0.39894228f       // φ(0)
#define ROOT8 1.59576912f      // √(8/π)
#define CUBE 0.044715f

DEVICE float relu(float x) { return x <= 0.0f ? 0.0f : x; }  // what is not a number stays
DEVICE float relu_slope(float y) { return y <= 0.0f ? 0.0f : 1.0f; }

DEVICE float share(float x) { return 0.5f + 0.5f * erff(x * ROOT_HALF); }  // Φ
DEVICE float gelu(float x) { return x * share(x); }
DEVICE float gelu_slope(float x) { return share(x) + x * PEAK * expf(-0.5f * x * x); }

DEVICE float gelu_tanh(float x) { return x / (1.0f + expf(-ROOT8 * (x + CUBE * x * x * x))); }
DEVICE float gelu_tanh_slope(float x) {
    float v = ROOT8 * (x + CUBE * x * x * x), e = expf(-fabsf(v));
    float larger = 1.0f / (1.0f + e);      // of σ(v) and 1 − σ(v); the other one is e times that
    float sigma = v >= 0.0f ? larger : e * larger;
    float product = e * larger * larger;  // σ · (1 − σ), with no difference of numbers near 1
    return sigma + x * product * ROOT8 * (1.0f + 3.0f * CUBE * x * x);
}

extern "C" __global__ void __launch_bounds__(256) bend_forward(
    const element* x, element* y, long long n) {
    if (PLACE >= n) return;
    float a[WIDTH];
    load(a, x + PLACE);
    #pragma unroll
    for (int i = 0; i < WIDTH; i++) a[i] = BEND(a[i]);
    store(y + PLACE, a);
}

extern "C" __global__ void __launch_bounds__(256) bend_backward(
    const element* dy, const element* kept, element* dx, long long n) {
    if (PLACE >= n) return;
    float a[WIDTH], d[WIDTH];
    load(a, kept + PLACE);
    load(d, dy + PLACE);
    #pragma unroll
    for (int i = 0; i < WIDTH; i++) d[i] *= SLOPE(a[i]);
    store(dx + PLACE, d);
}
