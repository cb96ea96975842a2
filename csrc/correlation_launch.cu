// Which CUDA kernel serves a call of correlation.h, and what it needs of the workspace.
#include "correlation_plan.cuh"

namespace vda {
namespace {

int query(Gpu* gpu) {
    int device;
    int code = cudaGetDevice(&device);
    const auto get = [&](int* value, cudaDeviceAttr which) {
        if (code == cudaSuccess) code = cudaDeviceGetAttribute(value, which, device);
    };
    get(&gpu->major, cudaDevAttrComputeCapabilityMajor);
    get(&gpu->multiprocessors, cudaDevAttrMultiProcessorCount);
    get(&gpu->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    if (code != cudaSuccess) (void)cudaGetLastError();
    return code;
}

bool empty(const CorrelationParams& p) { return p.batch == 0 || p.height == 0 || p.width == 0; }

// Whether the fast kernels can serve the call: offsets inside a sample are 32-bit.
bool fast(const CorrelationParams& p, const Gpu& gpu) {
    const int64_t stride = std::min(p.stride, std::max(p.height, p.width));
    return p.dtype != Dtype::f64 && gpu.major >= 8 &&
           int64_t(p.height) * p.width * std::max(units_per_pixel(p), 4) <= INT32_MAX &&
           (int64_t(p.radius) + kMaxSlots) * stride + std::max(p.height, p.width) <= INT32_MAX;
}

bool tensor_cores(const CorrelationParams& p) { return p.dtype != Dtype::f32 || p.allow_tf32; }

// Whether the kernels can read this map where it lies: channels-last, every pixel in whole aligned units.
bool direct(const CorrelationParams& p, const View& map) {
    const int size = size_of(p.dtype);
    const auto whole = [&](int64_t extent, int64_t stride) { return extent == 1 || stride * size % 16 == 0; };
    const auto reach = [&](int extent, int64_t stride) { return extent == 1 ? 0 : (extent - 1) * stride; };
    const int64_t span = reach(p.height, map.stride[2]) + reach(p.width, map.stride[3]) + p.channels;
    return int64_t(p.channels) * size % 16 == 0 && map.stride[1] == 1 && whole(p.batch, map.stride[0]) &&
           whole(p.height, map.stride[2]) && whole(p.width, map.stride[3]) &&
           reinterpret_cast<uintptr_t>(map.data) % 16 == 0 && span * size / 16 <= INT32_MAX;
}

// Takes the workspace apart; with null only counts its bytes.
class Workspace {
  public:
    explicit Workspace(void* data) : data_(static_cast<char*>(data)) {}
    char* take(int64_t bytes) {
        char* at = data_ == nullptr ? nullptr : data_ + bytes_;
        bytes_ += ceil_div<int64_t>(bytes, 16) * 16;
        return at;
    }
    int64_t bytes() const { return bytes_; }

  private:
    char* data_;
    int64_t bytes_ = 0;
};

// A map as the kernels read it, and where it has to be packed to first (null: nowhere).
struct Source {
    Features features;
    char* packed;
};
Source source(const CorrelationParams& p, const View& map, Workspace& workspace) {
    const int size = size_of(p.dtype), units = units_per_pixel(p);
    if (direct(p, map)) {
        const auto distance = [&](int64_t extent, int64_t stride) {
            return extent == 1 ? 0 : stride * size / 16;
        };
        return {{static_cast<const uint4*>(map.data), distance(p.batch, map.stride[0]),
                 int(distance(p.height, map.stride[2])), int(distance(p.width, map.stride[3])), units},
                nullptr};
    }
    const int64_t sample = int64_t(p.height) * p.width * units;
    char* packed = workspace.take(p.batch * sample * 16);
    return {{reinterpret_cast<uint4*>(packed), sample, p.width * units, units, units}, packed};
}

struct ForwardPlan {
    Source f1, f2;
    float* sums;        // of the passes before the last, null where there is one pass
    int passes, units;  // units of a pass, the last may have fewer

    ForwardPlan(const CorrelationParams& p, Workspace& workspace)
        : f1(source(p, p.f1, workspace)), f2(source(p, p.f2, workspace)), sums(nullptr), passes(1) {
        units = f1.features.units;
        if (!tensor_cores(p) || units <= kPassUnits) return;
        passes = ceil_div(units, kPassUnits);
        units = ceil_div(ceil_div(units, passes), 4) * 4;
        const int64_t d = displacements(p);
        sums = reinterpret_cast<float*>(workspace.take(p.batch * d * d * p.height * p.width * sizeof(float)));
    }
};

int pack(const CorrelationParams& p, const View& map, const Source& source, void* stream) {
    return source.packed == nullptr ? kOk : correlation_pack(p, map, source.packed, stream);
}

Features units_of(Features from, int first, int count) {
    from.data += first;
    from.units = std::min(count, from.units - first);
    return from;
}

int forward(const CorrelationParams& p, const Gpu& gpu, void* stream) {
    Workspace workspace(p.workspace);
    const ForwardPlan plan(p, workspace);
    int code = pack(p, p.f1, plan.f1, stream);
    if (code == kOk) code = pack(p, p.f2, plan.f2, stream);
    ForwardJob job{};
    job.tiling = make_tiling(p);
    job.out = p.out, job.dtype = p.dtype;
    job.scale = float(p.scale), job.negative_slope = float(p.negative_slope);
    job.vector = vector_stores(job.tiling, p.out, p.dtype);
    for (int pass = 0; pass < plan.passes && code == kOk; ++pass) {
        job.f1 = units_of(plan.f1.features, pass * plan.units, plan.units);
        job.f2 = units_of(plan.f2.features, pass * plan.units, plan.units);
        job.before = pass == 0 ? nullptr : plan.sums;
        job.after = pass == plan.passes - 1 ? nullptr : plan.sums;
        code = tensor_cores(p) ? correlation_mma(job, gpu, stream) : correlation_fp32(job, gpu, stream);
    }
    return code;
}

// Whether two neighbouring x of grad_out, the first even, always lie in one aligned 32-bit word.
bool paired(const CorrelationParams& p, const Tiling& tiling) {
    const int64_t* stride = p.grad_out.stride;
    const auto even = [](int64_t n) { return n % 2 == 0; };
    return size_of(p.dtype) == 2 && tiling.parities == 2 && stride[3] == 1 && even(p.width) &&
           even(stride[0]) && even(stride[1]) && even(stride[2]) &&
           reinterpret_cast<uintptr_t>(p.grad_out.data) % 4 == 0;
}

// The maps that the wanted gradients are made of.
struct BackwardPlan {
    Source f1{}, f2{};

    BackwardPlan(const CorrelationParams& p, Workspace& workspace) {
        if (p.grad_f2 != nullptr) f1 = source(p, p.f1, workspace);
        if (p.grad_f1 != nullptr) f2 = source(p, p.f2, workspace);
    }
};

int backward(const CorrelationParams& p, const Gpu& gpu, void* stream) {
    Workspace workspace(p.workspace);
    const BackwardPlan plan(p, workspace);
    BackwardJob job{};
    job.tiling = make_tiling(p);
    job.grad_out = p.grad_out, job.channels = p.channels, job.channels_last = p.channels_last;
    job.paired = paired(p, job.tiling), job.scale = float(p.scale), job.dtype = p.dtype;
    const auto run = [&](int sign, const View& map, const Source& from, void* grad) {
        if (grad == nullptr) return kOk;
        job.sign = sign, job.features = from.features, job.grad = grad;
        job.vector = p.channels_last ? p.channels % 4 == 0 &&
                                           reinterpret_cast<uintptr_t>(grad) % (4 * size_of(p.dtype)) == 0
                                     : vector_stores(job.tiling, grad, p.dtype);
        const int code = pack(p, map, from, stream);
        if (code != kOk) return code;
        return tensor_cores(p) ? correlation_backward_mma(job, gpu, stream)
                               : correlation_backward_fp32(job, gpu, stream);
    };
    const int code = run(1, p.f2, plan.f2, p.grad_f1);
    return code == kOk ? run(-1, p.f1, plan.f1, p.grad_f2) : code;
}

}  // namespace

int64_t correlation_workspace_cuda(const CorrelationParams& p) {
    Gpu gpu;
    if (empty(p) || query(&gpu) != kOk || !fast(p, gpu)) return 0;
    Workspace workspace(nullptr);
    ForwardPlan(p, workspace);
    return workspace.bytes();
}

int64_t correlation_backward_workspace_cuda(const CorrelationParams& p) {
    Gpu gpu;
    if (empty(p) || query(&gpu) != kOk || !fast(p, gpu)) return 0;
    Workspace workspace(nullptr);
    BackwardPlan(p, workspace);
    return workspace.bytes();
}

int correlation_cuda(const CorrelationParams& p, void* stream) {
    if (empty(p)) return kOk;
    Gpu gpu;
    const int code = query(&gpu);
    if (code != kOk) return code;
    return fast(p, gpu) ? forward(p, gpu, stream) : correlation_naive_cuda(p, stream);
}

int correlation_backward_cuda(const CorrelationParams& p, void* stream) {
    if (empty(p)) return kOk;
    Gpu gpu;
    const int code = query(&gpu);
    if (code != kOk) return code;
    return fast(p, gpu) ? backward(p, gpu, stream) : correlation_backward_naive_cuda(p, stream);
}

}  // namespace vda
