// CPU kernel of aggregate.h, split by rows. A strip of a row works out where its pixels lie in every
// neighbour once per block of classes, then runs through the class planes with plain gathers that the
// compiler can vectorise.
#include "aggregate.h"

#include "parallel.h"

namespace vda {
namespace {

constexpr int64_t kPixelsPerThread = 1 << 11;
constexpr int kStrip = 64;    // pixels
constexpr int kClasses = 32;  // class planes whose sums are held at once

// The taps of a strip of pixels in one neighbour, one array per quantity. Of an unseen pixel the offsets are
// 0 (safe to read) and `seen` is 0.
struct Strip {
    int64_t offset[kStrip];  // of the top left tap
    int64_t right[kStrip],
        down[kStrip];  // steps to the other taps; 0 at the last column or row, where the weight is 0
    float weight[4][kStrip];
    int32_t seen[kStrip];
};

VDA_HD void locate(const AggregateParams& p, float limit, int64_t b, int j, int y, int x0, int n,
                   Strip& strip, float* frames) {
    for (int i = 0; i < n; ++i) {
        const Sighting found = sighting(p, limit, b, j, y, x0 + i);
        Position<float> at = found.at;
        if (!found.visible) at = {0.0f, 0.0f};  // may be NaN
        const float left = std::floor(at.x), top = std::floor(at.y);
        const Taps<float> taps{{}, at.x - left, at.y - top};
        for (int tap = 0; tap < 4; ++tap) strip.weight[tap][i] = taps.weight(tap);
        strip.offset[i] = int(top) * p.neighbour_probs.stride[2] + int(left) * p.neighbour_probs.stride[3];
        strip.right[i] = int(left) + 1 < p.width ? p.neighbour_probs.stride[3] : 0;
        strip.down[i] = int(top) + 1 < p.height ? p.neighbour_probs.stride[2] : 0;
        strip.seen[i] = found.visible;
        frames[i] += found.visible ? 1.0f : 0.0f;
    }
}

template <typename T>
VDA_HD void add_plane(const T* plane, const Strip& strip, int n, float* sum) {
    for (int i = 0; i < n; ++i) {
        const T* tap = plane + strip.offset[i];
        const float top = strip.weight[0][i] * load(tap) + strip.weight[1][i] * load(tap + strip.right[i]);
        const float bottom = strip.weight[2][i] * load(tap + strip.down[i]) +
                             strip.weight[3][i] * load(tap + strip.down[i] + strip.right[i]);
        sum[i] += strip.seen[i] ? top + bottom : 0.0f;
    }
}

template <typename T>
VDA_HD void aggregate_strip(const AggregateParams& p, float limit, int64_t b, int y, int x0, int n) {
    const int64_t plane = int64_t(p.height) * p.width;
    const T* own = static_cast<const T*>(p.probs.data) + b * p.probs.stride[0] + y * p.probs.stride[2] +
                   x0 * p.probs.stride[3];
    T* out = static_cast<T*>(p.out) + b * p.classes * plane + int64_t(y) * p.width + x0;
    Strip strip;
    float sum[kClasses][kStrip], frames[kStrip];
    for (int k0 = 0; k0 < p.classes; k0 += kClasses) {
        const int classes = std::min(kClasses, p.classes - k0);
        for (int i = 0; i < n; ++i) frames[i] = 1.0f;
        for (int k = 0; k < classes; ++k) {
            for (int i = 0; i < n; ++i) {
                sum[k][i] = load(own + (k0 + k) * p.probs.stride[1] + i * p.probs.stride[3]);
            }
        }
        for (int j = 0; j < p.neighbours; ++j) {
            locate(p, limit, b, j, y, x0, n, strip, frames);
            const T* other = neighbour<T>(p.neighbour_probs, p.probs_step, b, j);
            for (int k = 0; k < classes; ++k) {
                add_plane(other + (k0 + k) * p.neighbour_probs.stride[1], strip, n, sum[k]);
            }
        }
        for (int k = 0; k < classes; ++k) {
            for (int i = 0; i < n; ++i) store(out + (k0 + k) * plane + i, sum[k][i] / frames[i]);
        }
    }
}

VDA_CLONES void aggregate_rows(const AggregateParams& p, int64_t begin, int64_t end) {
    const float limit = not_below<float>(p.limit);
    for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / p.height;
        const int y = int(row % p.height);
        for (int x0 = 0; x0 < p.width; x0 += kStrip) {
            const int n = std::min(kStrip, p.width - x0);
            switch (p.dtype) {
                case Dtype::f16:
                    aggregate_strip<half>(p, limit, b, y, x0, n);
                    break;
                case Dtype::bf16:
                    aggregate_strip<bfloat16>(p, limit, b, y, x0, n);
                    break;
                default:
                    aggregate_strip<float>(p, limit, b, y, x0, n);
                    break;
            }
        }
    }
}

}  // namespace

int aggregate_cpu(const AggregateParams& p, int threads) {
    if (p.dtype == Dtype::f64) return kBadDtype;
    if (p.classes == 0 || p.width == 0) return kOk;
    parallel_for(p.batch * p.height, ceil_div<int64_t>(kPixelsPerThread, p.width), threads,
                 [&](int64_t begin, int64_t end) { aggregate_rows(p, begin, end); });
    return kOk;
}

}  // namespace vda
