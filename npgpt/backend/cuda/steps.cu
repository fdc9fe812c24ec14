// Whether a step may be taken, decided on the GPU: nothing waits for the host.
//
//     norm = √(Σ g²)
//     clip = most / (norm + 1e-6) if norm > most > 0, and otherwise 1
//     alive is 1 until a norm is not finite, and from then on 0, and clip −1
//
// Once dead, adamw moves no weight (see optim.cu): when the host hears of it, some steps later, the
// weights are still those from before the step that failed.
//
// Shapes: total (1,) double; loss, alive (1,); report (2,) double: loss and norm; knobs (4,) float,
// of which the last is clip.
//
// Launch: one thread does it, of the one warp that a block has at least.

extern "C" __global__ void __launch_bounds__(32) judge(
    const double* total, const float* loss, double* report, float* knobs, int* alive, float most) {
    if (threadIdx.x > 0) return;
    double norm = sqrt(*total);
    if (!(norm < INFINITY)) *alive = 0;  // NaN is not less than anything
    float clip = most > 0.0f && norm > most ? (float)(most / (norm + 1e-6)) : 1.0f;
    knobs[3] = *alive ? clip : -1.0f;
    report[0] = *loss;
    report[1] = norm;
}
