// The sums of a matrix's columns, always in the same order: how the parts of a gradient that
// blocks have written side by side become one.
//
//     sums[c] = Σ_p partial[p, c]
//
// Shapes: partial (P, C) float; sums (C,) float. Bytes moved: 4·P·C, mostly from the second cache,
// as the kernel before has just written them.
//
// Launch: blocks of 32 warps for 32 columns. Lane l of each warp has column l, so that a warp reads
// neighbours; warp w adds the rows w, w + 32, …, and then the first warp adds the 32 sums.

extern "C" __global__ void __launch_bounds__(1024) sum_columns(
    const float* partial, float* sums, int P, int C) {
    __shared__ float part[32][33];  // [warp][lane], 33 so that a column lies in 32 banks
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int c = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (c < C) {
        for (int p = warp; p < P; p += 32) sum += partial[(long long)p * C + c];
    }
    part[warp][lane] = sum;
    __syncthreads();
    // The warp adds up a column across its lanes.
    float total = warp_sum(part[lane][warp]);
    if (lane == 0 && blockIdx.x * 32 + warp < C) sums[blockIdx.x * 32 + warp] = total;
}
