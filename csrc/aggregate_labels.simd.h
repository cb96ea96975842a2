// Tiles of aggregate_labels.h, compiled per instruction set (multiversion.h). Neighbouring pixels share
// nearly all taps, so the softmax of a neighbour is evaluated once for every pixel of the box that holds the
// taps of a tile, some 1.4 times per pixel of the result instead of 4 times, and never leaves the cache.

#include "upsampling.simd.h"

// ---- softmax of a strip of full-resolution pixels ----

// lines [K, width]: the logits of one full-resolution row, upsampled along y only, times log2(e). The
// probabilities go to `to`, those of a class `step` elements after the class before; work [K] is overwritten.
VDA_INLINE void softmax_strip(const float* lines, int64_t width, int classes, const Columns& at, Floats* work,
                              float* to, int64_t step) {
    Floats most = splat(-INFINITY);
    for (int k = 0; k < classes; ++k, lines += width) {
        work[k] = upsampled(lines, at);
        most = larger(most, work[k]);
    }
    Floats sum{};
    for (int k = 0; k < classes; ++k) {
        work[k] = power_of_two(work[k] - most);
        sum += work[k];
    }
    const Floats factor = 1.0f / sum;
    for (int k = 0; k < classes; ++k) store_lanes(to + k * step, work[k] * factor);
}

// ---- boxes ----

// Pixels of a neighbour whose probabilities [K, rows, columns] are at hand.
struct Box {
    int row, column, rows, columns;
    bool fits;  // else nothing is
};

// Calls body(y, x, i) for the strips of a tile, i counting them; the last of a row may begin before the tile.
template <typename Body>
VDA_INLINE void for_tile_strips(const Tile& tile, int width, const Body& body) {
    int i = 0;
    for (int y = tile.y0; y < tile.y1; ++y) {
        for (int x = tile.x0; x < tile.x1; x += kLanes, ++i)
            body(y, x + kLanes <= width ? x : width - kLanes, i);
    }
}

// Finds where neighbour j is seen from a tile, and the box of all that is read there.
VDA_INLINE Box locate(const AggregateLabelsParams& p, float limit, const Tile& tile, int j,
                      int32_t* visible) {
    constexpr int kFar = 1 << 24;
    Ints left = splat(kFar), right = splat(-1), top = splat(kFar), bottom = splat(-1);
    for_tile_strips(tile, p.near.width, [&](int y, int x, int i) VDA_INLINED {
        const StripSighting seen = strip_sighting(p.near, limit, tile.b, j, y, x);
        memcpy(visible + i * kLanes, &seen.visible, sizeof(seen.visible));
        left = seen.visible & (seen.taps.left < left) ? seen.taps.left : left;
        right = seen.visible & (seen.taps.right > right) ? seen.taps.right : right;
        top = seen.visible & (seen.taps.top < top) ? seen.taps.top : top;
        bottom = seen.visible & (seen.taps.bottom > bottom) ? seen.taps.bottom : bottom;
    });
    const int row = lowest(top), column = lowest(left);
    if (row == kFar) return {0, 0, 0, 0, true};  // seen nowhere
    const int needed = (highest(right) - column + kLanes) / kLanes * kLanes;
    const int rows = highest(bottom) - row + 1, columns = needed < 2 * kLanes ? 2 * kLanes : needed;
    return {row, column, rows, columns, int64_t(rows) * columns <= kBoxPixels};
}

VDA_INLINE void fill(const AggregateLabelsParams& p, const float* logits, const Axis& axis_y,
                     const Axis& axis_x, const Box& box, const Scratch& scratch, float* probs) {
    const int64_t width = line_width(p);
    const int begin = between(axis_x, box.column).low,
              end = between(axis_x, box.column + box.columns - 1).high + 1;
    Floats work[256];
    for (int r = 0; r < box.rows; ++r) {
        upsample_rows(logits, p.classes, p.logit_height, p.logit_width, between(axis_y, box.row + r), begin,
                      end, scratch.lines, width);
        for (int c = 0; c < box.columns; c += kLanes) {
            softmax_strip(scratch.lines, width, p.classes, columns_of(axis_x, box.column + c), work,
                          probs + int64_t(r) * box.columns + c, int64_t(box.rows) * box.columns);
        }
    }
}

// sum += probabilities of a neighbour at a strip, where it is visible.
VDA_INLINE void add_box(const AggregateLabelsParams& p, const Tile& tile, int j, int y, int x, const Box& box,
                        const float* probs, Ints visible, Floats* sum) {
    StripPosition at = strip_position(nth(p.near.flows, j), tile.b, y, x);
    // Pixels that see nothing go to the nearest place in the box, NaN to its corner.
    at.x = larger(smaller(at.x - float(box.column), splat(float(box.columns - 1))), Floats{});
    at.y = larger(smaller(at.y - float(box.row), splat(float(box.rows - 1))), Floats{});
    const StripTaps taps = strip_taps(at, box.rows, box.columns, Padding::zeros);
    const int64_t plane = int64_t(box.rows) * box.columns;
    const auto add_all = [&](const auto& taps_) VDA_INLINED {
        for (int k = 0; k < p.classes; ++k) {
            const Floats value = sample(probs + k * plane, box.columns, 1, taps_);
            sum[k] += visible ? value : Floats{};
        }
    };
    if (taps.window.flat && taps.complete) {  // nearly always: without the tests inside the loop
        StripTaps common = taps;
        common.window.rows = 2;
        common.window.flat = common.complete = true;
        add_all(common);
    } else {
        add_all(taps);
    }
}

VDA_INLINE void store_decision(const AggregateLabelsParams& p, const Floats* sum, Floats frames, int64_t i) {
    Floats best = splat(-1.0f), total{};
    Ints label{};
    for (int k = 0; k < p.classes; ++k) {
        total += sum[k];
        const Floats value = p.weight != nullptr ? sum[k] * p.weight[k] : sum[k];
        const Ints more = value > best;
        best = more ? value : best;
        label = more ? splat(k) : label;
    }
    const Ints valid = total == total;
    store_bytes(p.label + i, valid ? label : splat(int(kNoLabel)));
    store_lanes(p.confidence + i, valid ? best / frames : Floats{});
}

void aggregate_labels_tile(const AggregateLabelsParams& p, const Tile& tile, const Scratch& scratch) {
    const float limit = not_below<float>(p.near.limit);
    const int H = p.near.height, W = p.near.width;
    const Axis axis_y = upsampling_axis(p.logit_height, H, p.align_corners);
    const Axis axis_x = upsampling_axis(p.logit_width, W, p.align_corners);
    Box box[kMaxNeighbours];
    bool fits = in_strips(H, W);
    for (int j = 0; j < p.near.neighbours && fits; ++j) {
        box[j] = locate(p, limit, tile, j, scratch.visible + j * kTilePixels);
        fits = box[j].fits;
    }
    if (!fits) {
        for (int y = tile.y0; y < tile.y1; ++y) {
            for (int x = tile.x0; x < tile.x1; ++x) {
                const int64_t i = (tile.b * H + y) * W + x;
                float confidence;
                aggregate_labels_pixel<float>(p, limit, tile.b, y, x, p.label + i, &confidence);
                p.confidence[i] = to_half(confidence);
            }
        }
        return;
    }
    for (int j = 0; j < p.near.neighbours; ++j) {
        if (box[j].rows > 0)
            fill(p, nth<float>(p.neighbour_logits, j, tile.b), axis_y, axis_x, box[j], scratch,
                 scratch.probs[j]);
    }
    const float* own = static_cast<const float*>(p.logits.data) + tile.b * p.logits.stride[0];
    const int64_t width = line_width(p);
    const int begin = between(axis_x, tile.x0 < W - kLanes ? tile.x0 : W - kLanes).low;
    const int end = between(axis_x, tile.x1 - 1).high + 1;
    Floats sum[256];
    int filled = -1;  // row that the lines hold
    for_tile_strips(tile, W, [&](int y, int x, int i) VDA_INLINED {
        if (y != filled)
            upsample_rows(own, p.classes, p.logit_height, p.logit_width, between(axis_y, y), begin, end,
                          scratch.lines, width);
        filled = y;
        softmax_strip(scratch.lines, width, p.classes, columns_of(axis_x, x), sum,
                      reinterpret_cast<float*>(sum), kLanes);
        Floats frames = splat(1.0f);
        for (int j = 0; j < p.near.neighbours; ++j) {
            Ints visible;
            memcpy(&visible, scratch.visible + j * kTilePixels + i * kLanes, sizeof(visible));
            if (!any(visible)) continue;
            frames += visible ? splat(1.0f) : Floats{};
            add_box(p, tile, j, y, x, box[j], scratch.probs[j], visible, sum);
        }
        store_decision(p, sum, frames, (tile.b * H + y) * W + x);
    });
}
