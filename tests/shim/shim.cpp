// The scheduler behind cuda_runtime.h. A fiber runs one thread after another and is only left when a thread
// has to wait, so a kernel without barriers never switches.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace shim {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kMaxThreads = 1024;

struct Fiber {
    ucontext_t context;
    void* stack = nullptr;
    void* fake_stack = nullptr;  // AddressSanitizer's, kept while the fiber sleeps
    unsigned thread = 0;         // the thread it is running

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
struct Meeting {
    unsigned arrived = 0;
    unsigned round = 0;
    uint64_t value[2][32] = {};
    std::vector<Fiber*> waiting;
};

struct Block {
    const std::function<void()>* thread = nullptr;
    unsigned threads = 0;
    std::vector<unsigned> unstarted;  // taken from the back
    unsigned finished = 0;
    std::vector<Fiber*> runnable, barrier;
    int barrier_votes = 0, barrier_result = 0;
    std::map<std::pair<unsigned, unsigned>, Meeting> meetings;  // (warp, mask)
    std::vector<unsigned> exited;                               // per warp, lanes that returned
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

void fiber_main() {
    arrive(nullptr, &scheduler_stack, &scheduler_stack_bytes);
    for (;;) {
        while (!block.unstarted.empty() && error.empty()) {
            current->thread = block.unstarted.back();
            block.unstarted.pop_back();
            become(current->thread);
            (*block.thread)();
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

const uint64_t* exchange(unsigned mask, uint64_t value) {
    const unsigned warp = current->thread / 32;
    if (!(mask >> lane() & 1)) fail("a lane called a warp collective whose mask leaves it out");
    if (mask & block.exited[warp]) fail("a warp collective names lanes that have returned");
    Meeting& meeting = block.meetings[{warp, mask}];
    uint64_t* values = meeting.value[meeting.round & 1];
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

int launch(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& thread) {
    const uint64_t count = uint64_t(threads.x) * threads.y * threads.z;
    if (count == 0 || count > kMaxThreads || threads.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
        grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || shared_bytes > 227 * 1024) {
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
