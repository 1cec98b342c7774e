// What every kernel stands on: types, and threads that work in steps.
//
// A kernel's body is written once, as steps of a Team. On the GPU the threads of a block do a
// step at once and then wait for each other; on the CPU a loop does them one after the other, in
// either direction, so tests compile these very files with g++ and a step whose threads disturb
// each other gives two answers there. Nothing a thread must remember lives in its own variables
// from one step to the next: that is what shared memory is for.
#pragma once

#if defined(__CUDACC__)
#define COMIT_FN __host__ __device__ inline
#else
#include <cmath>
#include <cstring>
#define COMIT_FN inline
#endif

namespace comit {

using u8 = unsigned char;
using u16 = unsigned short;
using i16 = short;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;
using f32 = float;

constexpr int SIDE = 224;  // comit.preprocess.SIZE
constexpr int CELLS = SIDE * SIDE;

template <class T>
COMIT_FN T least(T a, T b) { return b < a ? b : a; }
template <class T>
COMIT_FN T most(T a, T b) { return a < b ? b : a; }

struct Team {
  int size;               // threads of a block
  bool backwards = false;  // on the CPU alone: the order in which a step's threads run

  // step(thread), thread 0 to size - 1, then a barrier.
  template <class Step>
  COMIT_FN void each(Step step) const {
#ifdef __CUDA_ARCH__
    step(static_cast<int>(threadIdx.x));
    __syncthreads();
#else
    for (int i = 0; i < size; ++i) step(backwards ? size - 1 - i : i);
#endif
  }
};

// Adds to a number that several threads add to; returns what it was.
COMIT_FN u32 add(u32* to, u32 value) {
#ifdef __CUDA_ARCH__
  return atomicAdd(to, value);
#else
  const u32 was = *to;
  *to = was + value;
  return was;
#endif
}

COMIT_FN u32 bits_of(f32 value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  u32 bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

COMIT_FN f32 of_bits(u32 bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  f32 value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

COMIT_FN bool is_nan(f32 value) { return !(value == value); }
COMIT_FN bool is_finite(f32 value) { return (bits_of(value) & 0x7f800000u) != 0x7f800000u; }

COMIT_FN int set_bits(u32 word) {
#ifdef __CUDA_ARCH__
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}

COMIT_FN int lowest_bit(u32 word) {  // of a word that is not 0
#ifdef __CUDA_ARCH__
  return __ffs(static_cast<int>(word)) - 1;
#else
  return __builtin_ctz(word);
#endif
}

}  // namespace comit
