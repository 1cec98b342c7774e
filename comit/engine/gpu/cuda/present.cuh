// Steps 2 to 5 of comit.preprocess on the 50,176 averaged values of an image, by one block.
//
// Operations are those of NumPy in float32, in its order; compile without contracting a product
// and a sum into one (NVRTC --fmad=false, g++ -ffp-contract=off) and they give its bits, but for
// exp. Lookup tables interpolate in double, as np.interp does.
#pragma once
#include "picture.cuh"

namespace comit {

constexpr int CLIPPED = CELLS / 200;  // comit.preprocess.CLIPPED: 0.5 % at either end

enum Status : u32 {
  PADDED = 1,       // some cells are padding
  UNUSABLE = 2,     // the window or VOI LUT shows one shade and was left out
  USED_VOI = 4,     // the window or VOI LUT was used
  BLANK = 8,        // no pixels: all values agree
  NONFINITE = 16,   // no pixels: a value is beyond float32
  CLIPPING = 32,    // the window or VOI LUT leaves most of the picture one shade
};

COMIT_FN f32 look_up(f32 value, const Table& t, const f32* entries) {
  const double at = static_cast<f32>(value - t.first);
  const f32* table = entries + t.offset;
  if (!(at > 0)) return is_nan(value) ? value : table[0];
  if (at >= t.count - 1) return table[t.count - 1];
  const int below = static_cast<int>(at);
  const double from = table[below];
  return static_cast<f32>((table[below + 1] - from) * (at - below) + from);
}

COMIT_FN f32 modality(f32 value, const Picture& p, const f32* entries) {
  if (p.modality.count) return look_up(value, p.modality, entries);
  return value * p.slope + p.intercept;
}

COMIT_FN f32 clip(f32 value) { return value < 0.0f ? 0.0f : value > 1.0f ? 1.0f : value; }

// PS3.3 C.11.2.1, output in [0, 1]; a VOI LUT's in its own units.
COMIT_FN f32 shown_as(f32 value, const Picture& p, const f32* entries) {
  if (p.voi == NO_VOI) return value;
  if (p.voi == LUT) return look_up(value, p.table, entries);
  if (p.voi == SIGMOID) return 1.0f / (1.0f + expf(-4.0f * (value - p.center) / p.spread));
  f32 center = p.center, spread = p.spread;
  if (p.voi == LINEAR) {
    center -= 0.5f;
    spread = most(spread - 1.0f, 1e-6f);
  }
  return clip((value - center) / spread + 0.5f);
}

// float32 to an integer of the same order.
COMIT_FN u32 key_of(f32 value) {
  const u32 bits = bits_of(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
COMIT_FN f32 of_key(u32 key) {
  return of_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// [0, 1] to IEEE 754 binary16, to the nearest, ties to even.
COMIT_FN u16 half_bits(f32 value) {
  const u32 bits = bits_of(value);
  if (bits < 0x38800000u) return static_cast<u16>(rintf(value * 16777216.0f));  // below 2^-14
  return static_cast<u16>((bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13);
}

struct PresentMemory {
  u32 counts[2][256];
  u32 found[2];  // keys of the two ranks, from the top digit down
  u32 rank[2];   // among the values that share those digits
  u32 inside, bad, usable;
  u32 at_end[2];  // cells that are as dark or as light as the stretch goes
  f32 low, high;
};

// The values of two ranks (0 is the least) among those that are not NaN: digit by digit from the
// top, counting how many values have which. What np.partition finds, exactly.
COMIT_FN void select(const Team& team, PresentMemory& memory, const f32* values, u32 low,
                     u32 high) {
  team.each([&](int thread) {
    if (thread) return;
    memory.rank[0] = low, memory.rank[1] = high;
    memory.found[0] = memory.found[1] = 0;
  });
  for (int shift = 24; shift >= 0; shift -= 8) {
    team.each([&](int thread) {
      for (int i = thread; i < 512; i += team.size) memory.counts[i / 256][i % 256] = 0;
    });
    team.each([&](int thread) {
      for (int i = thread; i < CELLS; i += team.size) {
        if (is_nan(values[i])) continue;
        const u32 key = key_of(values[i]);
        for (int which = 0; which < 2; ++which)
          if (((key ^ memory.found[which]) >> shift) >> 8 == 0)
            add(&memory.counts[which][(key >> shift) & 255u], 1u);
      }
    });
    team.each([&](int thread) {
      for (int which = thread; which < 2; which += team.size) {
        u32 digit = 0;
        while (digit < 255 && memory.rank[which] >= memory.counts[which][digit])
          memory.rank[which] -= memory.counts[which][digit++];
        memory.found[which] |= digit << shift;
      }
    });
  }
  team.each([&](int thread) {
    if (thread) return;
    memory.low = of_key(memory.found[0]);
    memory.high = of_key(memory.found[1]);
  });
}

// The ends of the stretch, into memory.low and high; memory.usable is 0 where they agree.
COMIT_FN void find_ends(const Team& team, PresentMemory& memory, const f32* values) {
  const u32 inside = memory.inside;
  const u32 clipped = static_cast<u32>(static_cast<u64>(CLIPPED) * inside / CELLS);
  select(team, memory, values, clipped, inside - 1 - clipped);
  const bool apart = memory.high > memory.low;
  team.each([](int) {});  // all have read before they change
  if (!apart) select(team, memory, values, 0, inside - 1);
  team.each([&](int thread) {
    if (thread) return;
    const f32 largest = most(fabsf(memory.low), fabsf(memory.high));
    memory.usable = memory.high - memory.low > largest * 0x1p-20f;
  });
}

// Whether one end of the stretch found by find_ends() is more than two thirds of the picture:
// comit.preprocess.CLIPS.
COMIT_FN bool is_clipped(const Team& team, PresentMemory& memory, const f32* values) {
  if (!memory.usable) return true;
  const f32 low = memory.low, high = memory.high;
  team.each([&](int thread) {
    if (!thread) memory.at_end[0] = memory.at_end[1] = 0;
  });
  team.each([&](int thread) {
    u32 dark = 0, light = 0;
    for (int i = thread; i < CELLS; i += team.size) {
      if (is_nan(values[i])) continue;
      dark += values[i] <= low;
      light += values[i] >= high;
    }
    add(&memory.at_end[0], dark);
    add(&memory.at_end[1], light);
  });
  const u32 dark = memory.at_end[0], light = memory.at_end[1];
  return 3 * (dark > light ? dark : light) > 2 * memory.inside;
}

// `grid` (224, 224) from average(), or pixels; overwritten. `shown` is room for as many. `out`
// is (224, 224): binary16 where `half`, else float32.
COMIT_FN void present(const Team& team, PresentMemory& memory, const u8* samples,
                      const Picture& p, const f32* entries, f32* grid, f32* shown, void* out,
                      i32 half, u32* status) {
  f32* pixels = static_cast<f32*>(out);
  u16* halves = static_cast<u16*>(out);
  if (p.kind == PIXELS) {
    const f32* ready = reinterpret_cast<const f32*>(samples + p.offset);
    team.each([&](int thread) {
      if (!thread) *status = 0;
      for (int i = thread; i < CELLS; i += team.size) {
        if (half) halves[i] = half_bits(ready[i]);
        else pixels[i] = ready[i];
      }
    });
    return;
  }
  team.each([&](int thread) {
    if (!thread) memory.inside = memory.bad = 0;
  });
  team.each([&](int thread) {
    u32 inside = 0, bad = 0;
    for (int i = thread; i < CELLS; i += team.size) {
      if (is_nan(grid[i])) {
        shown[i] = grid[i];
        continue;
      }
      const f32 value = modality(grid[i], p, entries);
      grid[i] = value;
      shown[i] = shown_as(value, p, entries);
      inside += 1;
      bad += !is_finite(value);
    }
    add(&memory.inside, inside);
    add(&memory.bad, bad);
  });
  u32 said = memory.inside < CELLS ? PADDED : 0u;
  const f32* values = shown;
  bool blank = memory.inside == 0;
  if (!blank && memory.bad) said |= NONFINITE;
  if (!blank && !memory.bad) {
    find_ends(team, memory, shown);
    if (p.voi != NO_VOI) {
      if (memory.usable) {
        said |= USED_VOI;
        if (is_clipped(team, memory, shown)) {
          const f32 low = memory.low, high = memory.high;
          team.each([](int) {});  // all have read before they change
          find_ends(team, memory, grid);
          if (!is_clipped(team, memory, grid)) said |= CLIPPING;
          team.each([](int) {});
          team.each([&](int thread) {
            if (!thread) memory.low = low, memory.high = high, memory.usable = 1;
          });
        }
      } else {
        said |= UNUSABLE;
        values = grid;
        team.each([](int) {});
        find_ends(team, memory, grid);
      }
    }
    blank = !memory.usable;
  }
  if (blank) said |= BLANK;
  const bool empty = (said & (BLANK | NONFINITE)) != 0;
  const f32 low = memory.low, range = memory.high - memory.low;
  team.each([&](int thread) {
    if (!thread) *status = said;
    for (int i = thread; i < CELLS; i += team.size) {
      f32 pixel = 0.0f;  // padding, and all of an image without pixels
      if (!empty && !is_nan(values[i])) {
        pixel = clip((values[i] - low) / range);
        if (p.inverted) pixel = 1.0f - pixel;
      }
      if (half) halves[i] = half_bits(pixel);
      else pixels[i] = pixel;
    }
  });
}

}  // namespace comit
