// Vector types and arithmetic of one instruction set, kBytes wide. Included by multiversion.h inside a
// namespace and with the compiler set to that instruction set, once for each; nowhere else, hence no include
// guard.

// GCC vectors: operators work on all lanes, comparisons give masks (-1 where they hold, else 0), a ? b : c
// selects.
template <typename A>
struct Lanes {
    typedef A vector __attribute__((vector_size(kBytes)));
    typedef A unaligned __attribute__((vector_size(kBytes), aligned(sizeof(A)), may_alias));
    static constexpr int count = kBytes / sizeof(A);
};
constexpr int kLanes = kBytes / 4;
using Floats = Lanes<float>::vector;
using Ints = Lanes<int32_t>::vector;
using Words = Lanes<uint32_t>::vector;
typedef uint16_t Shorts __attribute__((vector_size(kBytes / 2)));
typedef uint8_t Chars __attribute__((vector_size(kBytes / 4)));

template <typename To, typename From>
VDA_INLINE To reinterpret(From from) {
    return (To)from;
}

VDA_INLINE Floats splat(float value) { return Floats{} + value; }
VDA_INLINE Ints splat(int value) { return Ints{} + value; }
VDA_INLINE Ints iota(int first) {
    Ints result{};
    for (int i = 0; i < kLanes; ++i) result[i] = first + i;
    return result;
}

VDA_INLINE Floats absolute(Floats x) { return reinterpret<Floats>(reinterpret<Ints>(x) & 0x7fffffff); }
VDA_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
VDA_INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
VDA_INLINE Ints clamped(Ints x, int low, int high) {
    x = x < low ? splat(low) : x;
    return x > high ? splat(high) : x;
}
// Whether 0 <= x < limit, in one comparison.
VDA_INLINE Ints below(Ints x, int limit) {
    return reinterpret<Ints>(reinterpret<Words>(x) < Words{} + uint32_t(limit));
}
VDA_INLINE Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }
VDA_INLINE Ints truncated(Floats x) { return __builtin_convertvector(x, Ints); }  // of what an int can hold
VDA_INLINE Floats floored(Floats x) {                                             // likewise
    const Floats whole = to_floats(truncated(x));
    return whole > x ? whole - 1.0f : whole;
}
// Ties to even, as rint; of values below 2^22.
VDA_INLINE Floats rounded(Floats x) {
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: the sum has no bits left for a fraction
    return (x + kMagic) - kMagic;
}

// Element index[i] of the elements of a followed by those of b.
template <typename V>
VDA_INLINE V permuted(V a, V b, Ints index) {
#if defined(__clang__)  // has no shuffle by a variable
    V result{};
    for (int i = 0; i < kLanes; ++i) result[i] = index[i] < kLanes ? a[index[i]] : b[index[i] - kLanes];
    return result;
#else
    return __builtin_shuffle(a, b, index);
#endif
}

// ---- of all lanes ----

// A template, so that the branches for other widths, whose instructions do not exist here, are not compiled.
template <int bytes = kBytes>
VDA_INLINE bool any(Ints mask) {
#if defined(__x86_64__)
    if constexpr (bytes == 64) return _mm512_movepi32_mask(reinterpret<__m512i>(mask)) != 0;
    if constexpr (bytes == 32) return _mm256_movemask_epi8(reinterpret<__m256i>(mask)) != 0;
    if constexpr (bytes == 16) return _mm_movemask_epi8(reinterpret<__m128i>(mask)) != 0;
#else
    int result = 0;
    for (int i = 0; i < kLanes; ++i) result |= mask[i];
    return result != 0;
#endif
}
VDA_INLINE bool all(Ints mask) { return !any(~mask); }
VDA_INLINE int lowest(Ints x) {
    int result = x[0];
#pragma GCC unroll 16
    for (int i = 1; i < kLanes; ++i) result = x[i] < result ? x[i] : result;
    return result;
}
VDA_INLINE int highest(Ints x) { return -lowest(-x); }

// ---- 16-bit types: the vector form of common.h ----

// The forms with a mask, of all lanes: GCC 12 warns of its own header in the plain ones.
constexpr int kEvery = 0xffff;

template <int bytes = kBytes>
VDA_INLINE Floats half_to_floats(Shorts narrow) {
#if defined(__x86_64__)
    if constexpr (bytes == 64)
        return reinterpret<Floats>(_mm512_maskz_cvtph_ps(kEvery, reinterpret<__m256i>(narrow)));
    if constexpr (bytes == 32) return reinterpret<Floats>(_mm256_cvtph_ps(reinterpret<__m128i>(narrow)));
#endif
    const Ints bits = __builtin_convertvector(narrow, Ints);
    const Ints magnitude = (bits & 0x7fff) << 13, special = magnitude | 0x7f800000;
    const Floats scaled = reinterpret<Floats>(magnitude) * 5.192296858534828e33f;
    const Ints result = magnitude >= 0x0f800000 ? special : reinterpret<Ints>(scaled);
    return reinterpret<Floats>(result | (bits & 0x8000) << 16);
}
template <int bytes = kBytes>
VDA_INLINE Shorts floats_to_half(Floats value) {
#if defined(__x86_64__)
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    if constexpr (bytes == 64)
        return reinterpret<Shorts>(_mm512_maskz_cvtps_ph(kEvery, reinterpret<__m512>(value), kNearest));
    if constexpr (bytes == 32)
        return reinterpret<Shorts>(_mm256_cvtps_ph(reinterpret<__m256>(value), kNearest));
#endif
    const Ints bits = reinterpret<Ints>(value), magnitude = bits & 0x7fffffff;
    const Ints subnormal = reinterpret<Ints>(reinterpret<Floats>(magnitude) + 0.5f) - 0x3f000000;
    const Ints normal = (magnitude - 0x38000000 + 0x0fff + (magnitude >> 13 & 1)) >> 13;
    Ints result = magnitude < 0x38800000 ? subnormal : normal;
    const Ints special = magnitude > 0x7f800000 ? splat(0x7e00) : splat(0x7c00);
    result = magnitude >= 0x47800000 ? special : result;
    return __builtin_convertvector(result | (bits >> 16 & 0x8000), Shorts);
}
VDA_INLINE Shorts floats_to_bfloat16(Floats value) {
    const Ints bits = reinterpret<Ints>(value), magnitude = bits & 0x7fffffff;
    const Ints nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return __builtin_convertvector(magnitude > 0x7f800000 ? (bits >> 16 | 0x40) : nearest, Shorts);
}

// ---- memory: neighbouring elements of any type as floats, and back ----

template <int bytes = kBytes>
VDA_INLINE Ints load_bytes(const uint8_t* from) {
#if defined(__x86_64__)  // in one instruction, for which GCC takes nine
    if constexpr (bytes == 64) {
        return reinterpret<Ints>(
            _mm512_maskz_cvtepu8_epi32(kEvery, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
    }
    if constexpr (bytes == 32) {
        return reinterpret<Ints>(
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
    }
#endif
    Chars packed;
    memcpy(&packed, from, sizeof(packed));
    return __builtin_convertvector(packed, Ints);
}
template <typename T>
VDA_INLINE Floats load_lanes(const T* from) {
    if constexpr (std::is_same_v<T, float>) {
        return *reinterpret_cast<const Lanes<float>::unaligned*>(from);
    } else if constexpr (std::is_same_v<T, uint8_t>) {
        return to_floats(load_bytes(from));
    } else {
        Shorts narrow;
        memcpy(&narrow, from, sizeof(narrow));
        if constexpr (std::is_same_v<T, half>) return half_to_floats(narrow);
        const Ints bits = __builtin_convertvector(narrow, Ints);
        if constexpr (std::is_same_v<T, int16_t>) return to_floats((bits << 16) >> 16);
        if constexpr (std::is_same_v<T, bfloat16>) return reinterpret<Floats>(bits << 16);
    }
}
template <typename T>
VDA_OUTLINE void collect(const T* from, int64_t stride, float* to) {
    for (int i = 0; i < kLanes; ++i) to[i] = load(from + i * stride);
}
// Elements `stride` apart.
template <typename T>
VDA_INLINE Floats load_lanes(const T* from, int64_t stride) {
    if (stride == 1) return load_lanes(from);
    float values[kLanes];
    collect(from, stride, values);
    return load_lanes(values);
}
template <typename T>
VDA_INLINE void store_lanes(T* to, Floats value) {
    if constexpr (std::is_same_v<T, float>) {
        *reinterpret_cast<Lanes<float>::unaligned*>(to) = value;
    } else {
        Shorts narrow;
        if constexpr (std::is_same_v<T, bfloat16>) narrow = floats_to_bfloat16(value);
        if constexpr (std::is_same_v<T, half>) narrow = floats_to_half(value);
        memcpy(to, &narrow, sizeof(narrow));
    }
}
VDA_INLINE Ints load_bytes(const uint8_t* from, int64_t stride) {
    return stride == 1 ? load_bytes(from) : truncated(load_lanes(from, stride));
}
// The low bytes.
VDA_INLINE void store_bytes(uint8_t* to, Ints value) {
    const Chars packed = __builtin_convertvector(value, Chars);
    memcpy(to, &packed, sizeof(packed));
}
