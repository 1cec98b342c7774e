// Thresholds the two masks of an image and finds where runs begin, in COCO's order: down the
// columns, so that only run boundaries and areas leave the GPU.
//
// A column of 224 rows is seven words of 32 bits, and the columns' words in a row are the mask in
// COCO's order. A pixel begins a run where its bit differs from the one before it, the first where
// it is set.
#pragma once
#include "team.cuh"

namespace comit {

constexpr int WORDS = SIDE / 32;  // of a column

struct Runs {      // comit/gpu/batch.py RUNS mirrors it
  u32 offset;      // of the lung's boundaries among all; the disease's follow
  u32 count[2];    // boundaries of lung and disease
  u32 area[2];     // pixels of lung, and of disease inside the lung
};

struct RunsMemory {
  u32 words[2][SIDE * WORDS];
  u32 counts[2][SIDE];  // boundaries of a column, then of all columns before it
  u32 area[2];
  u32 offset;
};

COMIT_FN u32 column_word(const u8* mask, int column, int word, i32 threshold) {
  u32 bits = 0;
  for (int i = 0; i < 32; ++i)
    bits |= static_cast<u32>(mask[(32 * word + i) * SIDE + column] >= threshold) << i;
  return bits;
}

// Bits that differ from the bit before them; `at` counts words in COCO's order.
COMIT_FN u32 changes(const u32* words, int at) {
  const u32 carried = at ? words[at - 1] >> 31 : 0u;
  return words[at] ^ (words[at] << 1 | carried);
}

// One image by a team of 224, a thread a column. `masks` (2, 224, 224) of 0 to 255; `boundaries`
// are positions in COCO's order, room for 2 * 50,176 an image; `cursor` counts those of the batch.
COMIT_FN void find_runs(const Team& team, RunsMemory& memory, const u8* masks, i32 threshold,
                        u32* cursor, u16* boundaries, Runs* out) {
  team.each([&](int column) {
    if (!column) memory.area[0] = memory.area[1] = 0;
    for (int which = 0; which < 2; ++which)
      for (int word = 0; word < WORDS; ++word)
        memory.words[which][column * WORDS + word] =
            column_word(masks + which * CELLS, column, word, threshold);
  });
  team.each([&](int column) {
    u32 area[2] = {0, 0};
    for (int which = 0; which < 2; ++which) {
      u32 count = 0;
      for (int at = column * WORDS; at < (column + 1) * WORDS; ++at) {
        count += set_bits(changes(memory.words[which], at));
        area[which] += set_bits(memory.words[0][at] & memory.words[which][at]);
      }
      memory.counts[which][column] = count;
    }
    for (int which = 0; which < 2; ++which) add(&memory.area[which], area[which]);
  });
  team.each([&](int thread) {
    if (thread) return;
    u32 before = 0;
    for (int which = 0; which < 2; ++which) {
      const u32 start = before;
      for (int column = 0; column < SIDE; ++column) {
        const u32 count = memory.counts[which][column];
        memory.counts[which][column] = before;
        before += count;
      }
      out->count[which] = before - start;
      out->area[which] = memory.area[which];
    }
    out->offset = memory.offset = add(cursor, before);
  });
  team.each([&](int column) {
    for (int which = 0; which < 2; ++which) {
      u16* to = boundaries + memory.offset + memory.counts[which][column];
      for (int at = column * WORDS; at < (column + 1) * WORDS; ++at)
        for (u32 left = changes(memory.words[which], at); left; left &= left - 1)
          *to++ = static_cast<u16>(32 * at + lowest_bit(left));
    }
  });
}

}  // namespace comit
