// The Python module vda._C: one block per op, and the only place that throws. An op takes the members of its
// parameter struct as keywords, an array as the tuple (address, strides in elements, element type) or None.
// Every member has to be given and nothing else, so no two of them can be swapped unnoticed.
// vda/ops/_lib.py is the only caller: it has checked shapes, types and devices, and keeps the arrays alive.
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "aggregate.h"
#include "aggregate_labels.h"
#include "apply_thresholds.h"
#include "common.h"
#include "consensus.h"
#include "correlation.h"
#include "segmentation_sums.h"
#include "thresholds.h"
#include "warp.h"
#if defined(VDA_WITH_CUDA)
#include "device.h"
#define VDA_CUDA(...) __VA_ARGS__  // the launcher, and the readable one where there are two
#else
#define VDA_CUDA(...) nullptr
#endif

namespace py = pybind11;
using namespace vda;

namespace {

template <typename E>
struct Name {
    const char* name;
    E value;
};
constexpr Name<Dtype> kDtypes[] = {{"float32", Dtype::f32},
                                   {"float16", Dtype::f16},
                                   {"bfloat16", Dtype::bf16},
                                   {"float64", Dtype::f64},
                                   {"int16", Dtype::i16}};
constexpr Name<Mode> kModes[] = {{"bilinear", Mode::bilinear}, {"nearest", Mode::nearest}};
constexpr Name<Padding> kPaddings[] = {{"zeros", Padding::zeros}, {"border", Padding::border}};
constexpr Name<Rule> kRules[] = {{"paper", Rule::paper}, {"iast", Rule::iast}, {"portion", Rule::portion}};
constexpr Name<ConsensusMode> kConsensusModes[] = {{"strict", ConsensusMode::strict},
                                                   {"lenient", ConsensusMode::lenient},
                                                   {"fill_in", ConsensusMode::fill_in}};

// Fills the members of a parameter struct from the keywords of a call.
class Fields {
  public:
    explicit Fields(const py::kwargs& given) : given_(given) {}

    template <typename T>
    Fields& operator()(const char* name, T& member) {
        if (!given_.contains(name)) throw py::type_error(std::string("missing member ") + name);
        ++taken_;
        name_ = name;
        read(given_[name], member);
        return *this;
    }
    void done() const {
        if (taken_ != given_.size()) throw py::type_error("a member is given that the struct does not have");
    }

  private:
    void read(py::handle from, int64_t& to) { to = from.cast<int64_t>(); }
    void read(py::handle from, uint64_t& to) { to = from.cast<uint64_t>(); }
    void read(py::handle from, int& to) { to = from.cast<int>(); }
    void read(py::handle from, uint8_t& to) { to = from.cast<uint8_t>(); }
    void read(py::handle from, bool& to) { to = from.cast<bool>(); }
    void read(py::handle from, double& to) { to = from.cast<double>(); }
    void read(py::handle from, Dtype& to) { to = by_name(from, kDtypes); }
    void read(py::handle from, Mode& to) { to = by_name(from, kModes); }
    void read(py::handle from, Padding& to) { to = by_name(from, kPaddings); }
    void read(py::handle from, Rule& to) { to = by_name(from, kRules); }
    void read(py::handle from, ConsensusMode& to) { to = by_name(from, kConsensusModes); }

    template <typename T>
    void read(py::handle from, T*& to) {
        to = from.is_none() ? nullptr : reinterpret_cast<T*>(from.cast<py::tuple>()[0].cast<uintptr_t>());
    }
    void strides(py::handle from, std::initializer_list<int64_t*> members) {
        const auto given = from.cast<py::tuple>()[1].cast<py::tuple>();
        if (given.size() != members.size()) {
            throw py::type_error(std::string(name_) + ": wanted an array of " +
                                 std::to_string(members.size()) + " dimensions");
        }
        size_t i = 0;
        for (int64_t* member : members) *member = given[i++].cast<int64_t>();
    }
    void read(py::handle from, View& to) {
        read(from, to.data);
        int64_t* s = to.stride;
        if (to.data != nullptr) strides(from, {s, s + 1, s + 2, s + 3});
    }
    void read(py::handle from, LabelView& to) {
        read(from, to.data);
        int64_t* s = to.stride;
        if (to.data != nullptr) strides(from, {s, s + 1, s + 2});
    }
    void read(py::handle from, ConfidenceView& to) {
        read(from, to.data);
        int64_t* s = to.stride;
        if (to.data == nullptr) return;
        strides(from, {s, s + 1, s + 2});
        to.dtype = by_name(from.cast<py::tuple>()[2], kDtypes);
    }
    void read(py::handle from, ThetaView& to) {
        int64_t one;
        read(from, to.data);
        if (to.data != nullptr) strides(from, {&to.stride, &one});
    }
    void read(py::handle from, FlowView& to) {
        read(from, to.data);
        int64_t* s = to.stride;
        if (to.data == nullptr) return;
        strides(from, {s, s + 1, s + 2, s + 3});
        to.dtype = by_name(from.cast<py::tuple>()[2], kDtypes);
    }
    template <typename V>
    void read(py::handle from, Stack<V>& to) {  // [B, J, C, H, W]
        read(from, to.first.data);
        int64_t* s = to.first.stride;
        if (to.first.data == nullptr) return;
        strides(from, {s, &to.step, s + 1, s + 2, s + 3});
        if constexpr (std::is_same_v<V, FlowView>)
            to.first.dtype = by_name(from.cast<py::tuple>()[2], kDtypes);
    }

    template <typename E, size_t N>
    E by_name(py::handle from, const Name<E> (&names)[N]) {
        const auto wanted = from.cast<std::string>();
        for (const Name<E>& known : names) {
            if (wanted == known.name) return known.value;
        }
        throw std::invalid_argument(std::string(name_) + ": no kernel for " + wanted);
    }

    const py::kwargs& given_;
    size_t taken_ = 0;
    const char* name_ = "";
};

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

// The implementations of one op. `naive` is the readable CUDA version, where the other is a different one.
template <typename Params>
struct Launchers {
    int (*cpu)(const Params&, int threads);
    int (*cuda)(const Params&, void* stream);
    int (*naive)(const Params&, void* stream) = nullptr;

    void operator()(const std::string& device, const Params& p, int threads, uintptr_t stream) const {
        int code = kOk;
        if (device == "cpu") {
            code = cpu(p, threads);
        } else if (device == "cuda" && cuda != nullptr) {
            code = cuda(p, reinterpret_cast<void*>(stream));
        } else if (device == "cuda naive" && cuda != nullptr) {
            code = (naive != nullptr ? naive : cuda)(p, reinterpret_cast<void*>(stream));
        } else {
            throw std::invalid_argument("vda._C has no kernels for device " + device);
        }
        if (code != kOk) throw std::runtime_error(error_text(code));
    }
};

// m.<name>(device, threads, stream, **members) runs one op. members(fields, p) reads the struct.
template <typename Params, typename Members>
void def(py::module_& m, const char* name, Launchers<Params> launchers, const Members& members) {
    m.def(name, [=](const std::string& device, int threads, uintptr_t stream, const py::kwargs& given) {
        Params p{};
        Fields fields(given);
        members(fields, p);
        fields.done();
        py::gil_scoped_release release;
        launchers(device, p, threads, stream);
    });
}

// m.<name>_workspace(device, threads, **members): bytes that the workspace of such a call has to have.
template <typename Params, typename Members>
void def_workspace(py::module_& m, const std::string& name, int64_t (*cpu)(const Params&, int threads),
                   int64_t (*cuda)(const Params&), const Members& members,
                   int64_t (*naive)(const Params&) = nullptr) {
    m.def((name + "_workspace").c_str(),
          [=](const std::string& device, int threads, const py::kwargs& given) -> int64_t {
              Params p{};
              Fields fields(given);
              members(fields, p);
              fields.done();
              if (device == "cpu") return cpu(p, threads);
              const auto size = device == "cuda" ? cuda : naive;  // most readable kernels need none
              return size != nullptr ? size(p) : 0;
          });
}

void neighbourhood(Fields& f, Neighbourhood& p) {
    f("flows", p.flows)("frame", p.frame)("neighbour_frames", p.neighbour_frames);
    f("neighbours", p.neighbours)("channels", p.channels)("height", p.height)("width", p.width);
    f("limit", p.limit);
}
void correlation_pair(Fields& f, CorrelationParams& p) {
    f("f1", p.f1)("f2", p.f2)("workspace", p.workspace)("batch", p.batch)("channels", p.channels);
    f("height", p.height)("width", p.width)("radius", p.radius)("stride", p.stride)("dtype", p.dtype);
    f("scale", p.scale)("allow_tf32", p.allow_tf32);
}

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
    def<WarpParams>(
        m, "warp", {warp_cpu, VDA_CUDA(warp_cuda, warp_naive_cuda)}, [](Fields& f, WarpParams& p) {
            f("image", p.image)("flow", p.flow)("out", p.out)("batch", p.batch)("channels", p.channels);
            f("height", p.height)("width", p.width)("dtype", p.dtype)("padding", p.padding);
        });
    def<WarpNearestParams>(m, "warp_nearest",
                           {warp_nearest_cpu, VDA_CUDA(warp_nearest_cuda, warp_nearest_naive_cuda)},
                           [](Fields& f, WarpNearestParams& p) {
                               f("image", p.image)("flow", p.flow)("out", p.out)("batch", p.batch);
                               f("channels", p.channels)("height", p.height)("width", p.width);
                               f("element_size", p.element_size)("double_flow", p.double_flow);
                               f("fill", p.fill)("padding", p.padding);
                           });
    def<WarpBackwardParams>(m, "warp_backward",
                            {warp_backward_cpu, VDA_CUDA(warp_backward_cuda, warp_backward_naive_cuda)},
                            [](Fields& f, WarpBackwardParams& p) {
                                f("grad_out", p.grad_out)("image", p.image)("flow", p.flow);
                                f("grad_image", p.grad_image)("grad_flow", p.grad_flow);
                                f("fixed_point", p.fixed_point)("scale", p.scale)("batch", p.batch);
                                f("channels", p.channels)("height", p.height)("width", p.width);
                                f("dtype", p.dtype)("mode", p.mode)("padding", p.padding);
                            });
    def<WarpOcclusionParams>(m, "warp_occlusion",
                             {warp_occlusion_cpu, VDA_CUDA(warp_occlusion_cuda, warp_occlusion_naive_cuda)},
                             [](Fields& f, WarpOcclusionParams& p) {
                                 f("frame", p.frame)("neighbour", p.neighbour)("flow", p.flow)("out", p.out);
                                 f("visible", p.visible)("batch", p.batch)("channels", p.channels);
                                 f("height", p.height)("width", p.width)("dtype", p.dtype)("limit", p.limit);
                             });

    // ---- correlation ----
    const auto correlation = [](Fields& f, CorrelationParams& p) {
        correlation_pair(f, p);
        f("out", p.out)("negative_slope", p.negative_slope);
    };
    const auto correlation_backward = [](Fields& f, CorrelationParams& p) {
        correlation_pair(f, p);
        f("grad_out", p.grad_out)("grad_f1", p.grad_f1)("grad_f2", p.grad_f2);
        f("channels_last", p.channels_last);
    };
    using Correlation = Launchers<CorrelationParams>;
    def(m, "correlation",
        Correlation{correlation_cpu, VDA_CUDA(correlation_cuda), VDA_CUDA(correlation_naive_cuda)},
        correlation);
    def(m, "correlation_backward",
        Correlation{correlation_backward_cpu, VDA_CUDA(correlation_backward_cuda),
                    VDA_CUDA(correlation_backward_naive_cuda)},
        correlation_backward);
    def_workspace<CorrelationParams>(m, "correlation", correlation_workspace,
                                     VDA_CUDA(correlation_workspace_cuda), correlation);
    def_workspace<CorrelationParams>(m, "correlation_backward", correlation_backward_workspace,
                                     VDA_CUDA(correlation_backward_workspace_cuda), correlation_backward);

    // ---- aggregate ----
    def<AggregateParams>(
        m, "aggregate", {aggregate_cpu, VDA_CUDA(aggregate_cuda), VDA_CUDA(aggregate_naive_cuda)},
        [](Fields& f, AggregateParams& p) {
            f("probs", p.probs)("neighbour_probs", p.neighbour_probs)("out", p.out)("batch", p.batch);
            f("classes", p.classes)("dtype", p.dtype);
            neighbourhood(f, p.near);
        });

    // ---- aggregate_labels ----
    const auto aggregate_labels = [](Fields& f, AggregateLabelsParams& p) {
        f("logits", p.logits)("neighbour_logits", p.neighbour_logits)("weight", p.weight);
        f("label", p.label)("confidence", p.confidence)("histogram", p.histogram);
        f("workspace", p.workspace)("batch", p.batch)("classes", p.classes);
        f("logit_height", p.logit_height)("logit_width", p.logit_width)("dtype", p.dtype);
        f("align_corners", p.align_corners);
        neighbourhood(f, p.near);
    };
    def(m, "aggregate_labels",
        Launchers<AggregateLabelsParams>{aggregate_labels_cpu, VDA_CUDA(aggregate_labels_cuda),
                                         VDA_CUDA(aggregate_labels_naive_cuda)},
        aggregate_labels);
    def_workspace<AggregateLabelsParams>(m, "aggregate_labels", aggregate_labels_workspace, nullptr,
                                         aggregate_labels);

    // ---- class_thresholds ----
    m.attr("half_bins") = kHalfBins;
    m.attr("upper_bins") = kUpperBins;
    m.attr("lower_bins") = kLowerBins;
    m.attr("selection_words") = kSelectionWords;
    const auto thresholds = [](Fields& f, ThresholdsParams& p) {
        f("histogram", p.histogram)("confidence", p.confidence)("label", p.label)("pixels", p.pixels);
        f("dtype", p.dtype)("classes", p.classes)("bins", p.bins)("workspace", p.workspace);
        f("selection", p.selection)("lower", p.lower)("theta", p.theta)("out", p.out)("alpha", p.alpha);
        f("beta", p.beta)("gamma", p.gamma)("rule", p.rule);
    };
    using Steps = Launchers<ThresholdsParams>;
    def(m, "thresholds_count",
        Steps{thresholds_count_cpu, VDA_CUDA(thresholds_count_cuda, thresholds_count_naive_cuda)},
        thresholds);
    def(m, "thresholds_select",
        Steps{thresholds_select_cpu, VDA_CUDA(thresholds_select_cuda, thresholds_select_naive_cuda)},
        thresholds);
    def(m, "thresholds_refine",
        Steps{thresholds_refine_cpu, VDA_CUDA(thresholds_refine_cuda, thresholds_refine_naive_cuda)},
        thresholds);
    def(m, "thresholds_update",
        Steps{thresholds_update_cpu, VDA_CUDA(thresholds_update_cuda, thresholds_update_naive_cuda)},
        thresholds);

    // ---- apply_thresholds ----
    def<ApplyThresholdsParams>(
        m, "apply_thresholds",
        {apply_thresholds_cpu, VDA_CUDA(apply_thresholds_cuda, apply_thresholds_naive_cuda)},
        [](Fields& f, ApplyThresholdsParams& p) {
            f("label", p.label)("confidence", p.confidence)("theta", p.theta);
            f("out", p.out)("batch", p.batch)("height", p.height)("width", p.width);
            f("classes", p.classes)("ignore", p.ignore)("inclusive", p.inclusive);
        });

    // ---- consensus ----
    def<ConsensusParams>(m, "consensus", {consensus_cpu, VDA_CUDA(consensus_cuda, consensus_naive_cuda)},
                         [](Fields& f, ConsensusParams& p) {
                             f("label", p.label)("reference", p.reference)("visible", p.visible);
                             f("flow", p.flow)("out", p.out)("batch", p.batch)("height", p.height);
                             f("width", p.width)("ignore", p.ignore)("mode", p.mode);
                             f("confidence", p.confidence)("reference_confidence", p.reference_confidence);
                             f("theta", p.theta)("reference_theta", p.reference_theta);
                             f("classes", p.classes)("inclusive", p.inclusive);
                         });

    // ---- segmentation_sums ----
    const auto segmentation_frames = [](Fields& f, SegmentationSumsParams& p) {
        f("logits", p.logits)("label", p.label)("workspace", p.workspace)("batch", p.batch);
        f("classes", p.classes)("height", p.height)("width", p.width)("logit_height", p.logit_height);
        f("logit_width", p.logit_width)("dtype", p.dtype)("align_corners", p.align_corners);
    };
    const auto segmentation_sums = [=](Fields& f, SegmentationSumsParams& p) {
        segmentation_frames(f, p);
        f("sums", p.sums)("count", p.count);
    };
    const auto segmentation_sums_backward = [=](Fields& f, SegmentationSumsParams& p) {
        segmentation_frames(f, p);
        f("grad", p.grad)("grad_logits", p.grad_logits);
    };
    using Sums = Launchers<SegmentationSumsParams>;
    def(m, "segmentation_sums",
        Sums{segmentation_sums_cpu, VDA_CUDA(segmentation_sums_cuda, segmentation_sums_naive_cuda)},
        segmentation_sums);
    def(m, "segmentation_sums_backward",
        Sums{segmentation_sums_backward_cpu,
             VDA_CUDA(segmentation_sums_backward_cuda, segmentation_sums_backward_naive_cuda)},
        segmentation_sums_backward);
    def_workspace<SegmentationSumsParams>(m, "segmentation_sums", segmentation_sums_workspace,
                                          VDA_CUDA(segmentation_sums_workspace_cuda), segmentation_sums,
                                          VDA_CUDA(segmentation_sums_workspace_cuda));
    def_workspace<SegmentationSumsParams>(
        m, "segmentation_sums_backward", segmentation_sums_backward_workspace,
        VDA_CUDA(segmentation_sums_backward_workspace_cuda), segmentation_sums_backward);
}
