// Warps an image along a flow, tells where it shows what another shows, and draws the pixels where it does.
// The CUDA kernel takes the same struct, with addresses on the GPU: vda::warp_occlusion_cuda(p, stream).
#include <cstdint>
#include <cstdio>
#include <vector>

#include "warp.h"

int main() {
    constexpr int H = 5, W = 32;
    std::vector<float> frame(H * W), next(H * W), flow(2 * H * W), warped(H * W);
    std::vector<uint8_t> visible(H * W);
    for (int i = 0; i < H * W; ++i) {
        frame[i] = i % W >= 10 && i % W < 14;  // a bar that moves 4 to the right; behind it nothing moves
        next[i] = i % W >= 14 && i % W < 18;
        flow[i] = 4 * frame[i];
    }
    vda::WarpOcclusionParams p{};
    p.frame = {frame.data(), {H * W, H * W, W, 1}};
    p.neighbour = {next.data(), {H * W, H * W, W, 1}};
    p.flow = {flow.data(), {2 * H * W, H * W, W, 1}, vda::Dtype::f32};
    p.out = warped.data();
    p.visible = visible.data();
    p.batch = p.channels = 1;
    p.height = H;
    p.width = W;
    p.dtype = vda::Dtype::f32;
    p.limit = 0.1;  // of the squared difference
    if (vda::warp_occlusion_cpu(p, /*threads=*/2) != vda::kOk) return 1;

    int count = 0;
    for (int i = 0; i < H * W; ++i) {
        count += visible[i];
        std::printf("%c%s", visible[i] ? (frame[i] > 0 ? '#' : '.') : ' ', i % W == W - 1 ? "\n" : "");
    }
    std::printf("%d of %d pixels are visible\n", count, H * W);
}
