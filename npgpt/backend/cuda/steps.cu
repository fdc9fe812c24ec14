// Whether a step is taken, and how long it is, decided on the GPU: nothing waits for the host.
//
//     norm = √(Σ g²) / scale, as the gradient is that of scale · loss
//     clip = most / (norm + 1e-6) if norm > most > 0, and otherwise 1
//
// A norm that is not finite means that the step is skipped: no weight moves, AdamW does not count
// it, and the scale is halved. Where the scale is 1 already, as it always is but for fp16, nothing
// is left to halve: `alive` becomes 0, and no step is taken from then on. When the host hears of it,
// some steps later, the weights are still those from before the step that failed. The scale of the
// next step is that of npgpt/loss_scale.py, and doubled after grow_after good ones; 0 means never.
//
// What adamw is told by knobs (see optim.cu), with t the steps that AdamW has counted:
//     keep = 1 − lr · λ, length = lr / (1 − β₁ᵗ), root = 1 / √(1 − β₂ᵗ), clip / scale,
// the last of which is −1 if the step is skipped.
//
// Shapes: total () double; loss () float; wishes (4,) double: lr, λ, β₁, β₂; scale () float; counts
// (3,) int: alive, t, good steps in a row; knobs (4,) float; report (3,) double: loss, norm, scale.
//
// Launch: one thread does it, of the one warp that a block has at least.

extern "C" __global__ void __launch_bounds__(32) judge(
    const double* total, const float* loss, const double* wishes, float* scale, int* counts,
    float* knobs, double* report, float most, int grow_after) {
    if (threadIdx.x > 0) return;
    float S = *scale;
    double norm = sqrt(*total) / S;
    report[0] = *loss;
    report[1] = norm;
    report[2] = S;
    bool finite = norm < INFINITY;  // NaN is not less than anything
    if (!finite && S <= 1.0f) counts[0] = 0;
    knobs[3] = -1.0f;
    if (counts[0] == 0) return;
    if (!finite) {
        *scale = fmaxf(1.0f, S / 2);
        counts[2] = 0;
        return;
    }
    int t = ++counts[1];
    knobs[0] = (float)(1.0 - wishes[0] * wishes[1]);
    knobs[1] = (float)(wishes[0] / (1.0 - pow(wishes[2], (double)t)));
    knobs[2] = (float)(1.0 / sqrt(1.0 - pow(wishes[3], (double)t)));
    knobs[3] = (most > 0.0f && norm > most ? (float)(most / (norm + 1e-6)) : 1.0f) / S;
    if (++counts[2] == grow_after) {
        *scale = 2 * S;
        counts[2] = 0;
    }
}
