// The Python module vda._C: one block per op, and the only place that throws. Pointers are positional and
// arrive as integers; every size is a keyword, so no two of them can be swapped unnoticed. vda/ops/_lib.py is
// the only caller: it has checked shapes, types and devices, and keeps the arrays alive during the call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "aggregate.h"
#include "common.h"
#include "consensus.h"
#include "correlation.h"
#include "thresholds.h"
#include "warp.h"
#if defined(VDA_WITH_CUDA)
#include "device.h"
#define VDA_CUDA(launcher) launcher
#else
#define VDA_CUDA(launcher) nullptr
#endif

namespace py = pybind11;
using namespace vda;

namespace {

using Address = uintptr_t;
using Strides = std::array<int64_t, 4>;

template <typename T = void>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

View view(Address data, const Strides& stride) {
    return {pointer<const void>(data), {stride[0], stride[1], stride[2], stride[3]}};
}

Dtype dtype_of(const std::string& name) {
    if (name == "float32") return Dtype::f32;
    if (name == "float16") return Dtype::f16;
    if (name == "bfloat16") return Dtype::bf16;
    if (name == "float64") return Dtype::f64;
    throw std::invalid_argument("no kernel for element type " + name);
}

FlowView flow_view(Address data, const Strides& stride, const std::string& dtype) {
    return {pointer<const void>(data), {stride[0], stride[1], stride[2], stride[3]}, dtype_of(dtype)};
}

Mode mode_of(const std::string& name) {
    if (name == "bilinear") return Mode::bilinear;
    if (name == "nearest") return Mode::nearest;
    throw std::invalid_argument("no mode " + name);
}

Padding padding_of(const std::string& name) {
    if (name == "zeros") return Padding::zeros;
    if (name == "border") return Padding::border;
    throw std::invalid_argument("no padding " + name);
}

Rule rule_of(const std::string& name) {
    if (name == "paper") return Rule::paper;
    if (name == "iast") return Rule::iast;
    throw std::invalid_argument("no rule " + name);
}

ConsensusMode consensus_mode_of(const std::string& name) {
    if (name == "strict") return ConsensusMode::strict;
    if (name == "lenient") return ConsensusMode::lenient;
    if (name == "fill_in") return ConsensusMode::fill_in;
    throw std::invalid_argument("no mode " + name);
}

std::string error_text(int code) {
    if (code == kBadDtype) return "no kernel for this element type";
    if (code == kBadSize) return "a size is too large for the kernel";
#if defined(VDA_WITH_CUDA)
    constexpr int kNoKernelImage = 209;
    std::string text = std::string("CUDA error ") + std::to_string(code) + ": " + cuda_error_text(code);
    if (code == kNoKernelImage) {
        text += "; vda._C holds kernels for " VDA_ARCHITECTURES ", rebuild with VDA_CUDA_ARCHITECTURES set";
    }
    return text;
#else
    return "error " + std::to_string(code);
#endif
}

template <typename Params>
struct Launcher {
    using cuda = int (*)(const Params&, void* stream);
};

// Runs one launcher; device is "cpu" or "cuda". The GIL is released by the call guard of the binding.
template <typename Params>
void run(const std::string& device, int (*cpu)(const Params&, int), typename Launcher<Params>::cuda cuda,
         const Params& params, int threads, Address stream) {
    int code = kOk;
    if (device == "cpu") {
        code = cpu(params, threads);
    } else if (device == "cuda" && cuda != nullptr) {
        code = cuda(params, pointer<void>(stream));
    } else {
        throw std::invalid_argument("vda._C has no kernels for device " + device);
    }
    if (code != kOk) throw std::runtime_error(error_text(code));
}

using NoGil = py::call_guard<py::gil_scoped_release>;

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "Kernels of vda on raw pointers; call them through vda.ops.";
    m.attr("version") = VDA_VERSION;
    m.attr("architectures") = VDA_ARCHITECTURES;  // "" when built without CUDA
#if defined(VDA_WITH_CUDA)
    m.attr("cuda") = true;
    // () -> number of GPUs; RuntimeError with the driver's own sentence where there is none.
    m.def("device_count", [] {
        int count = 0;
        const int code = cuda_device_count(&count);
        if (code != kOk) throw std::runtime_error(error_text(code));
        return count;
    });
#else
    m.attr("cuda") = false;
#endif

    // ---- warp ----
    m.def(
        "warp",
        [](const std::string& device, Address image, Address flow, Address out, Strides image_stride,
           Strides flow_stride, int64_t batch, int channels, int height, int width, const std::string& dtype,
           const std::string& flow_dtype, const std::string& padding, int threads, Address stream) {
            const WarpParams p{view(image, image_stride),
                               flow_view(flow, flow_stride, flow_dtype),
                               pointer(out),
                               batch,
                               channels,
                               height,
                               width,
                               dtype_of(dtype),
                               padding_of(padding)};
            run(device, warp_cpu, VDA_CUDA(warp_cuda), p, threads, stream);
        },
        py::arg("device"), py::arg("image"), py::arg("flow"), py::arg("out"), py::kw_only(),
        py::arg("image_stride"), py::arg("flow_stride"), py::arg("batch"), py::arg("channels"),
        py::arg("height"), py::arg("width"), py::arg("dtype"), py::arg("flow_dtype"), py::arg("padding"),
        py::arg("threads"), py::arg("stream"), NoGil());
    m.def(
        "warp_nearest",
        [](const std::string& device, Address image, Address flow, Address out, Strides image_stride,
           Strides flow_stride, int64_t batch, int channels, int height, int width, int element_size,
           bool double_flow, uint64_t fill, const std::string& flow_dtype, const std::string& padding,
           int threads, Address stream) {
            const WarpNearestParams p{view(image, image_stride),
                                      flow_view(flow, flow_stride, flow_dtype),
                                      pointer(out),
                                      batch,
                                      channels,
                                      height,
                                      width,
                                      element_size,
                                      double_flow,
                                      fill,
                                      padding_of(padding)};
            run(device, warp_nearest_cpu, VDA_CUDA(warp_nearest_cuda), p, threads, stream);
        },
        py::arg("device"), py::arg("image"), py::arg("flow"), py::arg("out"), py::kw_only(),
        py::arg("image_stride"), py::arg("flow_stride"), py::arg("batch"), py::arg("channels"),
        py::arg("height"), py::arg("width"), py::arg("element_size"), py::arg("double_flow"), py::arg("fill"),
        py::arg("flow_dtype"), py::arg("padding"), py::arg("threads"), py::arg("stream"), NoGil());
    m.def(
        "warp_backward",
        [](const std::string& device, Address grad_out, Address image, Address flow, Address grad_image,
           Address grad_flow, Address fixed_point, Address scale, Strides grad_out_stride,
           Strides image_stride, Strides flow_stride, int64_t batch, int channels, int height, int width,
           const std::string& dtype, const std::string& flow_dtype, const std::string& mode,
           const std::string& padding, int threads, Address stream) {
            const WarpBackwardParams p{view(grad_out, grad_out_stride),
                                       view(image, image_stride),
                                       flow_view(flow, flow_stride, flow_dtype),
                                       pointer(grad_image),
                                       pointer(grad_flow),
                                       pointer<int64_t>(fixed_point),
                                       pointer<const double>(scale),
                                       batch,
                                       channels,
                                       height,
                                       width,
                                       dtype_of(dtype),
                                       mode_of(mode),
                                       padding_of(padding)};
            run(device, warp_backward_cpu, VDA_CUDA(warp_backward_cuda), p, threads, stream);
        },
        py::arg("device"), py::arg("grad_out"), py::arg("image"), py::arg("flow"), py::arg("grad_image"),
        py::arg("grad_flow"), py::arg("fixed_point"), py::arg("scale"), py::kw_only(),
        py::arg("grad_out_stride"), py::arg("image_stride"), py::arg("flow_stride"), py::arg("batch"),
        py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("dtype"), py::arg("flow_dtype"),
        py::arg("mode"), py::arg("padding"), py::arg("threads"), py::arg("stream"), NoGil());
    m.def(
        "warp_occlusion",
        [](const std::string& device, Address frame, Address neighbour, Address flow, Address out,
           Address visible, Strides frame_stride, Strides neighbour_stride, Strides flow_stride,
           int64_t batch, int channels, int height, int width, const std::string& dtype,
           const std::string& flow_dtype, double limit, int threads, Address stream) {
            const WarpOcclusionParams p{view(frame, frame_stride),
                                        view(neighbour, neighbour_stride),
                                        flow_view(flow, flow_stride, flow_dtype),
                                        pointer(out),
                                        pointer<uint8_t>(visible),
                                        batch,
                                        channels,
                                        height,
                                        width,
                                        dtype_of(dtype),
                                        limit};
            run(device, warp_occlusion_cpu, VDA_CUDA(warp_occlusion_cuda), p, threads, stream);
        },
        py::arg("device"), py::arg("frame"), py::arg("neighbour"), py::arg("flow"), py::arg("out"),
        py::arg("visible"), py::kw_only(), py::arg("frame_stride"), py::arg("neighbour_stride"),
        py::arg("flow_stride"), py::arg("batch"), py::arg("channels"), py::arg("height"), py::arg("width"),
        py::arg("dtype"), py::arg("flow_dtype"), py::arg("limit"), py::arg("threads"), py::arg("stream"),
        NoGil());

    // ---- correlation ----
    m.def(
        "correlation_workspace",
        [](int channels, int height, int width, int radius, int stride, const std::string& dtype,
           bool backward, int threads) {
            CorrelationParams p{};
            p.channels = channels;
            p.height = height;
            p.width = width;
            p.radius = radius;
            p.stride = stride;
            p.dtype = dtype_of(dtype);
            return backward ? correlation_backward_workspace(p, threads) : correlation_workspace(p);
        },
        py::kw_only(), py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("radius"),
        py::arg("stride"), py::arg("dtype"), py::arg("backward"), py::arg("threads"));
    // Forward writes out; backward reads grad_out and writes grad_f1 and grad_f2 where they are not null.
    m.def(
        "correlation",
        [](const std::string& device, Address f1, Address f2, Address out, Address grad_out, Address grad_f1,
           Address grad_f2, Address workspace, Strides f1_stride, Strides f2_stride, Strides grad_out_stride,
           int64_t batch, int channels, int height, int width, int radius, int stride,
           const std::string& dtype, bool backward, int threads, Address stream) {
            const CorrelationParams p{view(f1, f1_stride),
                                      view(f2, f2_stride),
                                      view(grad_out, grad_out_stride),
                                      pointer(out),
                                      pointer(grad_f1),
                                      pointer(grad_f2),
                                      pointer(workspace),
                                      batch,
                                      channels,
                                      height,
                                      width,
                                      radius,
                                      stride,
                                      dtype_of(dtype)};
            if (backward) {
                run(device, correlation_backward_cpu, VDA_CUDA(correlation_backward_cuda), p, threads,
                    stream);
            } else {
                run(device, correlation_cpu, VDA_CUDA(correlation_cuda), p, threads, stream);
            }
        },
        py::arg("device"), py::arg("f1"), py::arg("f2"), py::arg("out"), py::arg("grad_out"),
        py::arg("grad_f1"), py::arg("grad_f2"), py::arg("workspace"), py::kw_only(), py::arg("f1_stride"),
        py::arg("f2_stride"), py::arg("grad_out_stride"), py::arg("batch"), py::arg("channels"),
        py::arg("height"), py::arg("width"), py::arg("radius"), py::arg("stride"), py::arg("dtype"),
        py::arg("backward"), py::arg("threads"), py::arg("stream"), NoGil());

    // ---- aggregate ----
    m.def(
        "aggregate",
        [](const std::string& device, Address probs, Address neighbour_probs, Address flows, Address frame,
           Address neighbour_frames, Address out, Strides probs_stride, Strides neighbour_probs_stride,
           Strides flows_stride, Strides frame_stride, Strides neighbour_frames_stride, int64_t probs_step,
           int64_t flows_step, int64_t frames_step, int64_t batch, int neighbours, int classes, int channels,
           int height, int width, const std::string& dtype, const std::string& flows_dtype, double limit,
           int threads, Address stream) {
            const AggregateParams p{view(probs, probs_stride),
                                    view(neighbour_probs, neighbour_probs_stride),
                                    flow_view(flows, flows_stride, flows_dtype),
                                    view(frame, frame_stride),
                                    view(neighbour_frames, neighbour_frames_stride),
                                    probs_step,
                                    flows_step,
                                    frames_step,
                                    pointer(out),
                                    batch,
                                    neighbours,
                                    classes,
                                    channels,
                                    height,
                                    width,
                                    dtype_of(dtype),
                                    limit};
            run(device, aggregate_cpu, VDA_CUDA(aggregate_cuda), p, threads, stream);
        },
        py::arg("device"), py::arg("probs"), py::arg("neighbour_probs"), py::arg("flows"), py::arg("frame"),
        py::arg("neighbour_frames"), py::arg("out"), py::kw_only(), py::arg("probs_stride"),
        py::arg("neighbour_probs_stride"), py::arg("flows_stride"), py::arg("frame_stride"),
        py::arg("neighbour_frames_stride"), py::arg("probs_step"), py::arg("flows_step"),
        py::arg("frames_step"), py::arg("batch"), py::arg("neighbours"), py::arg("classes"),
        py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("dtype"), py::arg("flows_dtype"),
        py::arg("limit"), py::arg("threads"), py::arg("stream"), NoGil());

    // ---- class_thresholds ----
    m.attr("half_bins") = kHalfBins;
    m.attr("upper_bins") = kUpperBins;
    m.attr("lower_bins") = kLowerBins;
    m.attr("selection_words") = kSelectionWords;
    m.def(
        "thresholds",
        [](const std::string& device, Address histogram, Address confidence, Address label, Address workspace,
           Address selection, Address lower, Address theta, Address out, const std::string& step,
           int64_t pixels, const std::string& dtype, int classes, int bins, double alpha, double beta,
           double gamma, const std::string& rule, int threads, Address stream) {
            const ThresholdsParams p{pointer<const void>(confidence),
                                     pointer<const uint8_t>(label),
                                     pixels,
                                     dtype_of(dtype),
                                     classes,
                                     bins,
                                     pointer<int64_t>(histogram),
                                     pointer<uint32_t>(workspace),
                                     pointer<Selection>(selection),
                                     pointer<int64_t>(lower),
                                     pointer<const double>(theta),
                                     pointer<double>(out),
                                     alpha,
                                     beta,
                                     gamma,
                                     rule_of(rule)};
            if (step == "count") {
                run(device, thresholds_count_cpu, VDA_CUDA(thresholds_count_cuda), p, threads, stream);
            } else if (step == "select") {
                run(device, thresholds_select_cpu, VDA_CUDA(thresholds_select_cuda), p, threads, stream);
            } else if (step == "refine") {
                run(device, thresholds_refine_cpu, VDA_CUDA(thresholds_refine_cuda), p, threads, stream);
            } else if (step == "update") {
                run(device, thresholds_update_cpu, VDA_CUDA(thresholds_update_cuda), p, threads, stream);
            } else {
                throw std::invalid_argument("no step " + step);
            }
        },
        py::arg("device"), py::arg("histogram"), py::arg("confidence"), py::arg("label"),
        py::arg("workspace"), py::arg("selection"), py::arg("lower"), py::arg("theta"), py::arg("out"),
        py::kw_only(), py::arg("step"), py::arg("pixels"), py::arg("dtype"), py::arg("classes"),
        py::arg("bins"), py::arg("alpha"), py::arg("beta"), py::arg("gamma"), py::arg("rule"),
        py::arg("threads"), py::arg("stream"), NoGil());

    // ---- consensus ----
    m.def(
        "consensus",
        [](const std::string& device, Address label, Address reference, Address visible, Address flow,
           Address out, std::array<int64_t, 3> label_stride, std::array<int64_t, 3> reference_stride,
           std::array<int64_t, 3> visible_stride, Strides flow_stride, int64_t batch, int height, int width,
           const std::string& flow_dtype, uint8_t ignore, const std::string& mode, int threads,
           Address stream) {
            const ConsensusParams p{pointer<const uint8_t>(label),
                                    pointer<const uint8_t>(reference),
                                    pointer<const bool>(visible),
                                    {label_stride[0], label_stride[1], label_stride[2]},
                                    {reference_stride[0], reference_stride[1], reference_stride[2]},
                                    {visible_stride[0], visible_stride[1], visible_stride[2]},
                                    flow_view(flow, flow_stride, flow_dtype),
                                    pointer<uint8_t>(out),
                                    batch,
                                    height,
                                    width,
                                    ignore,
                                    consensus_mode_of(mode)};
            run(device, consensus_cpu, VDA_CUDA(consensus_cuda), p, threads, stream);
        },
        py::arg("device"), py::arg("label"), py::arg("reference"), py::arg("visible"), py::arg("flow"),
        py::arg("out"), py::kw_only(), py::arg("label_stride"), py::arg("reference_stride"),
        py::arg("visible_stride"), py::arg("flow_stride"), py::arg("batch"), py::arg("height"),
        py::arg("width"), py::arg("flow_dtype"), py::arg("ignore"), py::arg("mode"), py::arg("threads"),
        py::arg("stream"), NoGil());
}
