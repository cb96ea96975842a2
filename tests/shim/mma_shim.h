// csrc/mma.cuh on the CPU. Asynchronous copies do the worst that a GPU may do: the destination is spoilt when
// a copy starts and filled when its thread waits for it, so a missing wait or barrier shows as wrong numbers.
#pragma once

#include "common.h"
#include "cuda_runtime.h"

namespace shim {

void start_copy(void* to, const void* from, int bytes, bool exists);
void commit_copies();
void wait_copies(int newest);

// Gives `own` to the other lanes of the full warp; what each of the 32 gave, valid until the next call.
struct Operands {
    uint32_t a[4], b[2];
};
const Operands* exchange_operands(const Operands& own);

}  // namespace shim

namespace vda {

using SharedAddress = unsigned char*;

inline SharedAddress shared_address(const void* p) {
    return static_cast<SharedAddress>(const_cast<void*>(p));
}

inline void copy_async_16(SharedAddress to, const void* from, bool exists = true) {
    shim::start_copy(to, from, 16, exists);
}
inline void copy_async_4(SharedAddress to, const void* from, bool exists) {
    shim::start_copy(to, from, 4, exists);
}
inline void commit_copies() { shim::commit_copies(); }
inline void wait_copies(int newest) { shim::wait_copies(newest); }

namespace detail {
template <typename T>
T read(uint64_t address, int offset) {
    T value;
    memcpy(&value, reinterpret_cast<const unsigned char*>(address) + offset, sizeof(T));
    return value;
}
inline const uint64_t* exchange_rows(SharedAddress row) {
    const auto address = reinterpret_cast<uintptr_t>(row);
    if (address % 16 != 0) shim::fail("ldmatrix wants rows that start at a multiple of 16 bytes");
    return shim::exchange(0xffffffffu, address);
}
}  // namespace detail

inline void load_unit(uint32_t (&r)[4], SharedAddress at) {
    if (reinterpret_cast<uintptr_t>(at) % 16 != 0) shim::fail("a load of 16 bytes is not aligned");
    memcpy(r, at, sizeof(r));
}
inline void load_matrices(uint32_t (&r)[4], SharedAddress row) {
    const uint64_t* rows = detail::exchange_rows(row);
    const int lane = int(shim::lane());
    for (int i = 0; i < 4; ++i) r[i] = detail::read<uint32_t>(rows[8 * i + lane / 4], 4 * (lane % 4));
}
inline void load_matrices_transposed(uint32_t (&r)[4], SharedAddress row) {
    const uint64_t* rows = detail::exchange_rows(row);
    const int lane = int(shim::lane()), column = 2 * (lane / 4), at = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
        const uint32_t lower = detail::read<uint16_t>(rows[8 * i + at], column);
        r[i] = lower | uint32_t(detail::read<uint16_t>(rows[8 * i + at + 1], column)) << 16;
    }
}

namespace detail {
// The k-th value of 4 bytes that hold one TF32 or two 16-bit values.
inline float value(uint32_t bits, int k, half) { return to_float(half{uint16_t(bits >> 16 * k)}); }
inline float value(uint32_t bits, int k, bfloat16) { return to_float(bfloat16{uint16_t(bits >> 16 * k)}); }
inline float value(uint32_t bits, int, float) { return bit_cast<float>(bits & 0xffffe000u); }
}  // namespace detail

template <typename T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T type) {
    shim::Operands own;
    memcpy(own.a, a, sizeof(a));
    own.b[0] = b0, own.b[1] = b1;
    const shim::Operands* all = shim::exchange_operands(own);
    const int g = int(shim::lane() / 4), t = int(shim::lane() % 4);
    for (int i = 0; i < 4; ++i) {
        const int row = g, upper = i / 2, column = 2 * t + i % 2;
        for (int half = 0; half < 2; ++half) {
            for (int quarter = 0; quarter < 4; ++quarter) {
                const uint32_t left = all[4 * row + quarter].a[upper + 2 * half];
                const uint32_t right = all[4 * column + quarter].b[half];
                for (int k = 0; k < 4 / int(sizeof(T)); ++k)
                    d[i] += detail::value(left, k, type) * detail::value(right, k, type);
            }
        }
    }
}

inline uint32_t round_to_tf32(uint32_t bits) {
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x7f800000u) return magnitude > 0x7f800000u ? 0x7fffffffu : bits;
    return (bits + 0x1000u) & 0xffffe000u;
}

inline uint32_t pack_pair(float lower, float upper, half) {
    return to_half(lower).bits | uint32_t(to_half(upper).bits) << 16;
}
inline uint32_t pack_pair(float lower, float upper, bfloat16) {
    return to_bfloat16(lower).bits | uint32_t(to_bfloat16(upper).bits) << 16;
}

template <typename V>
void store_vector(void* to, V v) {
    if (reinterpret_cast<uintptr_t>(to) % sizeof(V) != 0) shim::fail("a vector store is not aligned");
    memcpy(to, &v, sizeof(V));
}

inline int reread_thread_index() { return int(threadIdx.x); }
inline unsigned reread_block_index() { return blockIdx.x; }

}  // namespace vda
