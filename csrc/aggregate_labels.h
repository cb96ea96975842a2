// From low-resolution logits straight to labels and confidences: bilinear upsampling, softmax, aggregation
// over the neighbours (Eq. 10, see aggregate.h), argmax and max. Probabilities are never stored for a whole
// frame.
#pragma once

#include "sighting.h"
#include "thresholds.h"
#include "upsampling.h"
#include "warp.h"

namespace vda {

constexpr int kMaxNeighbours = 8;
constexpr uint8_t kNoLabel = 255;  // of a pixel whose distribution is not a number; its confidence is 0

struct AggregateLabelsParams {
    View logits;                   // [B, K, h, w]
    Stack<View> neighbour_logits;  // [B, J, K, h, w]
    Neighbourhood near;   // J <= kMaxNeighbours; its height and width are those of the result, H and W
    const float* weight;  // [K], factors of the probabilities before argmax and max; or null
    uint8_t* label;       // [B, H, W], contiguous: argmax, the lowest class of equals
    half* confidence;     // [B, H, W], contiguous: max
    int64_t* histogram;   // [K, kHalfBins], added to, see thresholds.h; or null
    void* workspace;      // CPU only: the bytes that the function below asks for
    int64_t batch;
    int classes;                    // K <= 255
    int logit_height, logit_width;  // h, w
    Dtype dtype;         // of logits and neighbour_logits: f32, f16 or bf16; on the CPU f32, contiguous
    bool align_corners;  // of the upsampling, as in torch
};

int64_t aggregate_labels_workspace(const AggregateLabelsParams& p, int threads);
int aggregate_labels_cpu(const AggregateLabelsParams& p, int threads);
int aggregate_labels_cuda(const AggregateLabelsParams& p, void* stream);
int aggregate_labels_naive_cuda(const AggregateLabelsParams& p, void* stream);

// A pixel whose softmax enters the sum, with the factor that it enters with: the pixel itself, or a tap in a
// neighbour.
template <typename T>
struct Source {
    const T* logits;
    Between y, x;
    float factor, largest;  // factor: bilinear weight over the sum of exponentials
};

// One pixel of the result, the readable version: finds the maximum and the sum of exponentials of every
// source, then goes through the classes.
template <typename T>
VDA_HD void aggregate_labels_pixel(const AggregateLabelsParams& p, float limit, int64_t b, int y, int x,
                                   uint8_t* label, float* confidence) {
    const Axis axis_y = upsampling_axis(p.logit_height, p.near.height, p.align_corners);
    const Axis axis_x = upsampling_axis(p.logit_width, p.near.width, p.align_corners);
    const int64_t* stride = p.neighbour_logits.first.stride;
    const int64_t* own_stride = p.logits.stride;
    Source<T> sources[1 + 4 * kMaxNeighbours];
    sources[0] = {static_cast<const T*>(p.logits.data) + b * own_stride[0], between(axis_y, y),
                  between(axis_x, x), 1.0f, 0.0f};
    int count = 1, frames = 1;
    for (int j = 0; j < p.near.neighbours; ++j) {
        const Sighting seen = sighting(p.near, limit, b, j, y, x);
        if (!seen.visible) continue;
        ++frames;
        const int left = int(seen.at.x), top = int(seen.at.y);  // in the frame, so not negative
        const Taps<float> taps{{}, seen.at.x - float(left), seen.at.y - float(top)};
        for (int tap = 0; tap < 4; ++tap) {
            const int tap_y = top + (tap >> 1), tap_x = left + (tap & 1);
            if (tap_y >= p.near.height || tap_x >= p.near.width) continue;  // its weight is 0
            sources[count++] = {nth<T>(p.neighbour_logits, j, b), between(axis_y, tap_y),
                                between(axis_x, tap_x), taps.weight(tap), 0.0f};
        }
    }
    for (int i = 0; i < count; ++i) {
        Source<T>& s = sources[i];
        const int64_t* strides = i == 0 ? own_stride : stride;
        float sum = 0;
        s.largest = -INFINITY;
        for (int k = 0; k < p.classes; ++k)
            s.largest = fmaxf(s.largest, upsampled(s.logits + k * strides[1], strides, s.y, s.x));
        for (int k = 0; k < p.classes; ++k)
            sum += expf(upsampled(s.logits + k * strides[1], strides, s.y, s.x) - s.largest);
        s.factor /= sum;
    }
    float best = -1.0f, total = 0.0f;
    int best_class = 0;
    for (int k = 0; k < p.classes; ++k) {
        float probability = 0;
        for (int i = 0; i < count; ++i) {
            const Source<T>& s = sources[i];
            const int64_t* strides = i == 0 ? own_stride : stride;
            probability +=
                s.factor * expf(upsampled(s.logits + k * strides[1], strides, s.y, s.x) - s.largest);
        }
        total += probability;
        if (p.weight != nullptr) probability *= p.weight[k];
        if (probability > best) {
            best = probability;
            best_class = k;
        }
    }
    const bool valid = total == total;
    *label = valid ? uint8_t(best_class) : kNoLabel;
    *confidence = valid ? best / float(frames) : 0.0f;
}

}  // namespace vda
