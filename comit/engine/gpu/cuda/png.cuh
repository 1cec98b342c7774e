// Undoes the filters of PNG scanlines (ISO/IEC 15948 clause 9), grey of 8 or 16 bits.
//
// A pixel needs its left, upper and upper-left neighbours. Each thread has a row and is one pixel
// behind the thread of the row above, so all three are done when it needs them.
#pragma once
#include "team.cuh"

namespace comit {

constexpr int ROWS = 256;  // of a band: threads of a block

struct Scanlines {  // comit/gpu/batch.py SCANLINES mirrors it
  u64 source;       // bytes to the inflated rows, each a filter byte and width * depth / 8 bytes
  u64 target;       // bytes to where the samples go
  i32 height, width;
  i32 bytes;  // of a sample: 1 or 2, the high byte first in the source, native in the target
};

enum Filter : u8 { NONE = 0, SUB = 1, UP = 2, AVERAGE = 3, PAETH = 4 };

COMIT_FN u32 predictor(u32 a, u32 b, u32 c) {  // 9.4
  const i32 p = static_cast<i32>(a + b) - static_cast<i32>(c);
  const i32 to_a = p - static_cast<i32>(a), to_b = p - static_cast<i32>(b);
  const i32 to_c = p - static_cast<i32>(c);
  const i32 pa = to_a < 0 ? -to_a : to_a, pb = to_b < 0 ? -to_b : to_b;
  const i32 pc = to_c < 0 ? -to_c : to_c;
  return pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
}

COMIT_FN u32 unfiltered(u32 filter, u32 raw, u32 left, u32 up, u32 upper_left) {
  const u32 predicted = filter == SUB       ? left
                        : filter == UP      ? up
                        : filter == AVERAGE ? (left + up) / 2
                        : filter == PAETH   ? predictor(left, up, upper_left)
                                            : 0u;
  return (raw + predicted) & 255u;
}

struct UnfilterMemory {
  u16 done[3][ROWS + 1];  // of the last three steps: done[step % 3][1 + thread]
};

COMIT_FN void unfilter(const Team& team, UnfilterMemory& memory, const u8* filtered, u8* samples,
                       const Scanlines& s) {
  const u64 stride = 1 + static_cast<u64>(s.width) * s.bytes;
  u8* narrow = samples + s.target;
  u16* wide = reinterpret_cast<u16*>(narrow);
  for (int band = 0; band < s.height; band += team.size) {
    const int steps = s.width + least(team.size, s.height - band) - 1;
    for (int step = 0; step < steps; ++step) {
      u16 *now = memory.done[step % 3] + 1, *last = memory.done[(step + 2) % 3] + 1;
      const u16* before = memory.done[(step + 1) % 3] + 1;
      team.each([&](int thread) {
        const int y = band + thread, x = step - thread;
        if (y >= s.height || x < 0 || x >= s.width) return;
        const u64 above = (static_cast<u64>(y) - 1) * s.width + x;  // used where y > 0
        u32 left = 0, up = 0, upper_left = 0;
        if (x) left = last[thread];
        if (thread) {
          up = last[thread - 1];
          if (x) upper_left = before[thread - 1];
        } else if (y) {  // the last row of the band before
          up = s.bytes == 1 ? narrow[above] : wide[above];
          if (x) upper_left = s.bytes == 1 ? narrow[above - 1] : wide[above - 1];
        }
        const u8* row = filtered + s.source + y * stride;
        const u32 filter = row[0];
        const u64 at = static_cast<u64>(y) * s.width + x;
        if (s.bytes == 1) {
          now[thread] = narrow[at] =
              static_cast<u8>(unfiltered(filter, row[1 + x], left, up, upper_left));
        } else {
          const u32 high =
              unfiltered(filter, row[1 + 2 * x], left >> 8, up >> 8, upper_left >> 8);
          const u32 low = unfiltered(filter, row[2 + 2 * x], left & 255u, up & 255u,
                                     upper_left & 255u);
          now[thread] = wide[at] = static_cast<u16>(high << 8 | low);
        }
      });
    }
  }
}

}  // namespace comit
