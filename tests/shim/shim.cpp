// The scheduler behind cuda_runtime.h. A fiber runs one thread after another and is only left when a thread
// has to wait, so a kernel without barriers never switches.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "mma_shim.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace shim {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kMaxThreads = 1024;

// An asynchronous copy that has been started; without a source it fills with zeros.
struct Copy {
    void* to;
    const void* from;
    int bytes;
};

struct Fiber {
    ucontext_t context;
    void* stack = nullptr;
    void* fake_stack = nullptr;  // AddressSanitizer's, kept while the fiber sleeps
    unsigned thread = 0;         // the thread it is running
    // Of that thread: copies of the open group, groups that are closed but not waited for (oldest first).
    std::vector<Copy> copies;
    std::deque<std::vector<Copy>> groups;

    Fiber() {
        stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED) std::abort();
    }
    ~Fiber() { munmap(stack, kStackBytes); }
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;
};

// Lanes of one warp that meet under one mask. Two buffers in turn: a lane can be one exchange ahead, never
// two.
template <typename Value>
struct Meeting {
    unsigned arrived = 0;
    unsigned round = 0;
    Value value[2][32] = {};
    std::vector<Fiber*> waiting;
};
template <typename Value>
using Meetings = std::map<std::pair<unsigned, unsigned>, Meeting<Value>>;  // by (warp, mask)

struct Block {
    const std::function<void()>* thread = nullptr;
    unsigned threads = 0;
    std::vector<unsigned> unstarted;  // taken from the back
    unsigned finished = 0;
    std::vector<Fiber*> runnable, barrier;
    int barrier_votes = 0, barrier_result = 0;
    Meetings<uint64_t> meetings;
    Meetings<Operands> operand_meetings;
    std::vector<unsigned> exited;  // per warp, lanes that returned
};

ucontext_t scheduler;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;
Fiber* current = nullptr;
Block block;
std::mt19937 order;
bool shuffled = false;
std::vector<unsigned char> shared;
std::string error;

// Called right before and right after every switch, so that AddressSanitizer knows which stack is in use.
void leave(void** fake_stack, const void* bottom, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
#else
    (void)fake_stack, (void)bottom, (void)bytes;
#endif
}
void arrive(void* fake_stack, const void** bottom, size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, bottom, bytes);
#else
    (void)fake_stack, (void)bottom, (void)bytes;
#endif
}

void become(unsigned thread) {
    threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
}

// From a fiber back to the scheduler; returns when the scheduler resumes the fiber.
void wait() {
    Fiber* self = current;
    leave(&self->fake_stack, scheduler_stack, scheduler_stack_bytes);
    swapcontext(&self->context, &scheduler);
    arrive(self->fake_stack, &scheduler_stack, &scheduler_stack_bytes);
    become(self->thread);
}

void resume(Fiber* fiber) {
    current = fiber;
    leave(&scheduler_fake_stack, fiber->stack, kStackBytes);
    swapcontext(&scheduler, &fiber->context);
    arrive(scheduler_fake_stack, nullptr, nullptr);
}

// At the end of a thread: empty groups may be left.
void check_copies() {
    if (!current->copies.empty()) fail("a thread returned before it closed its group of copies");
    for (const auto& group : current->groups) {
        if (!group.empty()) fail("a thread returned before its copies");
    }
    current->groups.clear();
}

void fiber_main() {
    arrive(nullptr, &scheduler_stack, &scheduler_stack_bytes);
    for (;;) {
        while (!block.unstarted.empty() && error.empty()) {
            current->thread = block.unstarted.back();
            block.unstarted.pop_back();
            become(current->thread);
            (*block.thread)();
            if (!current->copies.empty() || !current->groups.empty()) check_copies();
            ++block.finished;
            block.exited[current->thread / 32] |= 1u << current->thread % 32;
        }
        idle.push_back(current);
        wait();
    }
}

Fiber* fresh_fiber() {
    if (idle.empty()) {
        fibers.push_back(std::make_unique<Fiber>());
        Fiber* fiber = fibers.back().get();
        getcontext(&fiber->context);
        fiber->context.uc_stack.ss_sp = fiber->stack;
        fiber->context.uc_stack.ss_size = kStackBytes;
        fiber->context.uc_link = nullptr;
        makecontext(&fiber->context, fiber_main, 0);
        return fiber;
    }
    Fiber* fiber = idle.back();
    idle.pop_back();
    return fiber;
}

void wake(std::vector<Fiber*>& waiting) {
    block.runnable.insert(block.runnable.end(), waiting.begin(), waiting.end());
    waiting.clear();
    if (shuffled) std::shuffle(block.runnable.begin(), block.runnable.end(), order);
}

unsigned lanes_of(unsigned warp) {
    const unsigned lanes = std::min(32u, block.threads - 32 * warp);
    return lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
}

void run_block() {
    block.unstarted.resize(block.threads);
    for (unsigned i = 0; i < block.threads; ++i) block.unstarted[i] = block.threads - 1 - i;
    if (shuffled) std::shuffle(block.unstarted.begin(), block.unstarted.end(), order);
    block.finished = 0;
    block.barrier_votes = 0;
    block.runnable.clear();
    block.barrier.clear();
    block.meetings.clear();
    block.operand_meetings.clear();
    block.exited.assign((block.threads + 31) / 32, 0);
    std::fill(shared.begin(), shared.end(), 0xcd);  // nobody may count on zeros
    while (block.finished < block.threads && error.empty()) {
        // A coin decides between waking and starting, so that a shuffled run also lets some threads race
        // ahead.
        const bool start = !block.unstarted.empty() && (block.runnable.empty() || (shuffled && order() % 2));
        if (start) {
            resume(fresh_fiber());
        } else if (!block.runnable.empty()) {
            Fiber* next = block.runnable.back();
            block.runnable.pop_back();
            resume(next);
        } else {
            error = block.barrier.empty() ? "a warp collective waits for lanes that never come"
                                          : "__syncthreads was not reached by every thread of the block";
        }
    }
}

}  // namespace

void fail(const char* what) {
    error = what;
    for (;;) wait();  // never resumed: the scheduler sees the error and drops every fiber
}

void* dynamic_shared() { return shared.data(); }

unsigned lane() { return current->thread % 32; }

unsigned lanes() { return lanes_of(current->thread / 32); }

int block_barrier(bool value) {
    block.barrier_votes += value;
    if (block.barrier.size() + 1 < block.threads) {
        block.barrier.push_back(current);
        wait();
    } else {
        block.barrier_result = std::exchange(block.barrier_votes, 0);
        wake(block.barrier);
    }
    return block.barrier_result;
}

namespace {
template <typename Value>
const Value* meet(Meetings<Value>& meetings, unsigned mask, const Value& value) {
    const unsigned warp = current->thread / 32;
    if (!(mask >> lane() & 1)) fail("a lane called a warp collective whose mask leaves it out");
    if (mask & block.exited[warp]) fail("a warp collective names lanes that have returned");
    Meeting<Value>& meeting = meetings[{warp, mask}];
    Value* values = meeting.value[meeting.round & 1];
    values[lane()] = value;
    meeting.arrived |= 1u << lane();
    if (meeting.arrived == (mask & lanes_of(warp))) {
        meeting.arrived = 0;
        ++meeting.round;
        wake(meeting.waiting);
    } else {
        meeting.waiting.push_back(current);
        wait();
    }
    return values;
}
}  // namespace

const uint64_t* exchange(unsigned mask, uint64_t value) { return meet(block.meetings, mask, value); }

const Operands* exchange_operands(const Operands& own) {
    return meet(block.operand_meetings, 0xffffffffu, own);
}

void start_copy(void* to, const void* from, int bytes, bool exists) {
    if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0)
        fail("an asynchronous copy is not aligned");
    memset(to, 0xff, bytes);  // NaN
    current->copies.push_back({to, exists ? from : nullptr, bytes});
}

void commit_copies() {
    current->groups.push_back(std::move(current->copies));
    current->copies.clear();
}

void wait_copies(int newest) {
    while (int(current->groups.size()) > newest) {
        for (const Copy& copy : current->groups.front()) {
            if (copy.from != nullptr)
                memcpy(copy.to, copy.from, copy.bytes);
            else
                memset(copy.to, 0, copy.bytes);
        }
        current->groups.pop_front();
    }
}

int attribute(cudaDeviceAttr which) {
    const char* given = std::getenv("VDA_SHIM_CAPABILITY");
    const int capability = given == nullptr ? 90 : std::atoi(given);
    switch (which) {
        case cudaDevAttrMultiProcessorCount:
            return 2;
        case cudaDevAttrComputeCapabilityMajor:
            return capability / 10;
        case cudaDevAttrComputeCapabilityMinor:
            return capability % 10;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            return 1024 * (capability >= 90 && capability < 120   ? 227
                           : capability == 80 || capability == 87 ? 163
                           : capability == 75                     ? 64
                                                                  : 99);
    }
    return 0;
}

int launch(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& thread) {
    const uint64_t count = uint64_t(threads.x) * threads.y * threads.z;
    if (count == 0 || count > kMaxThreads || threads.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
        grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
        shared_bytes > size_t(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))) {
        return cudaErrorInvalidConfiguration;
    }
    const char* seed = std::getenv("VDA_SHIM_SEED");
    shuffled = seed != nullptr && std::atoi(seed) != 0;
    if (shuffled) order.seed(unsigned(std::atoi(seed)));
    gridDim = grid;
    blockDim = threads;
    block.thread = &thread;
    block.threads = unsigned(count);
    shared.resize(shared_bytes);
    error.clear();
    std::vector<uint64_t> blocks(uint64_t(grid.x) * grid.y * grid.z);
    for (uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
    if (shuffled) std::shuffle(blocks.begin(), blocks.end(), order);
    for (uint64_t i : blocks) {
        blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y),
                    unsigned(i / (uint64_t(grid.x) * grid.y))};
        run_block();
        if (!error.empty()) {
            std::fprintf(stderr, "shim: %s\n", error.c_str());
            idle.clear();
            fibers.clear();  // with whatever the abandoned threads had on their stacks
            return cudaErrorLaunchFailure;
        }
    }
    return cudaSuccess;
}

}  // namespace shim

const char* cudaGetErrorString(cudaError_t code) {
    switch (code) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorLaunchFailure:
            return shim::error.c_str();
    }
    return "unknown error";
}
