// CPU kernel of aggregate_labels.h, split by tiles.
#include "aggregate_labels.h"

#include <algorithm>

#include "parallel.h"

namespace vda {
namespace {

constexpr int kTileRows = 16, kTileColumns = 112;
constexpr int64_t kTilePixels = kTileRows * kTileColumns;
constexpr int64_t kBoxPixels = 8 * kTilePixels;  // beyond that, taps are cheaper one by one

// The rectangle of pixels [y0, y1) x [x0, x1) that is done at once.
struct Tile {
    int64_t b;
    int y0, y1, x0, x1;
};

// What one thread works with, cut from its part of the workspace.
struct Scratch {
    float* probs[kMaxNeighbours];  // [K, kBoxPixels] of every neighbour
    int32_t* visible;              // [neighbours, strips of a tile, kLanes], masks
    float* lines;
};

int64_t line_width(const AggregateLabelsParams& p) { return p.logit_width + 2 * kMaxLanes; }

}  // namespace
}  // namespace vda

#define VDA_KERNELS "aggregate_labels.simd.h"
#include "multiversion.h"

namespace vda {
namespace {

int64_t scratch_floats(const AggregateLabelsParams& p) {
    const int64_t probs = int64_t(p.near.neighbours) * p.classes * kBoxPixels;
    const int64_t floats = probs + int64_t(p.near.neighbours) * kTilePixels + p.classes * line_width(p);
    return ceil_div<int64_t>(floats, kMaxLanes) * kMaxLanes;
}

int64_t tiles(const AggregateLabelsParams& p) {
    return p.batch * ceil_div(p.near.height, kTileRows) * ceil_div(p.near.width, kTileColumns);
}

Tile tile_of(const AggregateLabelsParams& p, int64_t i) {
    const int across = ceil_div(p.near.width, kTileColumns), down = ceil_div(p.near.height, kTileRows);
    const int x0 = int(i % across) * kTileColumns, y0 = int(i / across % down) * kTileRows;
    return {i / across / down, y0, std::min(y0 + kTileRows, p.near.height), x0,
            std::min(x0 + kTileColumns, p.near.width)};
}

}  // namespace

int64_t aggregate_labels_workspace(const AggregateLabelsParams& p, int threads) {
    return std::min<int64_t>(threads, std::max<int64_t>(tiles(p), 1)) * scratch_floats(p) * sizeof(float);
}

int aggregate_labels_cpu(const AggregateLabelsParams& p, int threads) {
    if (p.dtype != Dtype::f32) return kBadDtype;
    const int64_t n = tiles(p), slots = std::min<int64_t>(threads, n);
    const auto run = VDA_WIDEST(aggregate_labels_tile);
    std::atomic<int64_t> next{0};
    parallel_for(slots, 1, int(slots), [&](int64_t slot, int64_t) {
        float* from = static_cast<float*>(p.workspace) + slot * scratch_floats(p);
        Scratch scratch{};
        for (int j = 0; j < p.near.neighbours; ++j, from += p.classes * kBoxPixels) scratch.probs[j] = from;
        scratch.visible = reinterpret_cast<int32_t*>(from);
        scratch.lines = from + p.near.neighbours * kTilePixels;
        for (int64_t i = next++; i < n; i = next++) run(p, tile_of(p, i), scratch);
    });
    if (p.histogram == nullptr) return kOk;
    ThresholdsParams count{};  // the labels and confidences are still in the cache
    count.confidence = p.confidence;
    count.label = p.label;
    count.pixels = p.batch * p.near.height * p.near.width;
    count.dtype = Dtype::f16;
    count.classes = p.classes;
    count.bins = kHalfBins;
    count.histogram = p.histogram;
    return thresholds_count_cpu(count, threads);
}

}  // namespace vda
