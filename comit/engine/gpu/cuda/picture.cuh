// One image of a batch, as comit/gpu/batch.py lays it out (PICTURE there: the same fields).
#pragma once
#include "team.cuh"

namespace comit {

enum Kind : i32 {
  U8 = 0,
  U16 = 1,
  I16 = 2,
  PIXELS = 3,  // (224, 224) float32 in [0, 1] that the CPU preprocessed: passed through
};

enum Voi : i32 { NO_VOI = 0, LINEAR = 1, LINEAR_EXACT = 2, SIGMOID = 3, LUT = 4 };

struct Table {    // a lookup table (PS3.3 C.11.1.1.1)
  u32 offset;     // of its first entry among the batch's entries
  i32 count;      // 0: there is none
  f32 first;      // the input value of the first entry
};

struct Picture {
  u64 offset;  // bytes from the batch's start to the samples; a multiple of their size
  i32 height, width;
  i32 kind;
  i32 padding_low, padding_high;  // inclusive; low > high where there is no padding
  f32 slope, intercept;
  Table modality;
  i32 voi;
  f32 center, spread;  // of the window: its width
  Table table;         // the VOI LUT
  i32 inverted;
};

}  // namespace comit
