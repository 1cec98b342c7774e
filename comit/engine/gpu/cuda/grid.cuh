// Area average to 224 x 224: step 1 of comit.preprocess.
//
// Along an axis of n samples a grid cell covers n / 224 of them. In units of 1/224 of a sample
// both borders are whole numbers: cell g spans [g n, (g + 1) n), sample i [224 i, 224 (i + 1)).
// So every weight is a whole number, every sum exact and no order of adding changes a bit.
#pragma once
#include "picture.cuh"

namespace comit {

constexpr int MOST_SIDE = 32767;  // rows or columns: 32,767 x 65,535 fits a u32, x 32,768 an i32
constexpr int SPAN = 4096;        // columns of samples a block adds up at once

COMIT_FN int first_sample(int cell, int n) { return cell * n / SIDE; }
COMIT_FN int end_sample(int cell, int n) { return ((cell + 1) * n + SIDE - 1) / SIDE; }

// In units of 1/224 of a sample; over a cell's samples these sum to n.
COMIT_FN int overlap(int cell, int sample, int n) {
  return least((cell + 1) * n, (sample + 1) * SIDE) - most(cell * n, sample * SIDE);
}

// Cells side by side whose samples are no more than SPAN columns.
COMIT_FN int tile_cells(int width) {
  return most(1, least(SIDE, static_cast<int>((SPAN - 2) * static_cast<i64>(SIDE) / width)));
}

struct AverageMemory {
  u32 total[SPAN];   // of a column within a row of cells; two's complement where signed
  u32 weight[SPAN];  // of its samples that are not padding
};

template <class Sample>
COMIT_FN void add_column(const Sample* samples, const Picture& p, int row, int x, u32& total,
                         u32& weight) {
  total = weight = 0;
  const int end = end_sample(row, p.height);
  for (int y = first_sample(row, p.height); y < end; ++y) {
    const i32 value = samples[static_cast<u64>(y) * p.width + x];
    if (p.padding_low <= value && value <= p.padding_high) continue;
    const u32 share = static_cast<u32>(overlap(row, y, p.height));
    total += share * static_cast<u32>(value);
    weight += share;
  }
}

// The mean of one cell; NaN where padding alone is in it. `memory` begins at column `start`.
COMIT_FN f32 cell_mean(const AverageMemory& memory, const Picture& p, int cell, int start) {
  i64 total = 0, weight = 0;
  const int end = end_sample(cell, p.width);
  for (int x = first_sample(cell, p.width); x < end; ++x) {
    const i64 share = overlap(cell, x, p.width);
    const u32 column = memory.total[x - start];
    total += share * (p.kind == I16 ? static_cast<i64>(static_cast<i32>(column))
                                    : static_cast<i64>(column));
    weight += share * memory.weight[x - start];
  }
  // comit.preprocess: a weight below 1e-6 of a cell is no value.
  const double least_weight = 1e-6 * static_cast<double>(p.height) * p.width;
  if (!(static_cast<double>(weight) > least_weight)) return of_bits(0x7fc00000u);
  return static_cast<f32>(static_cast<double>(total) / static_cast<double>(weight));
}

// One row of cells, or a tile of it, of one image. `grid` is (224, 224) float32.
COMIT_FN void average(const Team& team, AverageMemory& memory, const u8* samples,
                      const Picture& p, f32* grid, int row, int tile) {
  const int cells = tile_cells(p.width), first = tile * cells;
  if (p.kind == PIXELS || first >= SIDE) return;
  const int end = least(SIDE, first + cells);
  const int start = first_sample(first, p.width), stop = end_sample(end - 1, p.width);
  const u8* bytes = samples + p.offset;
  team.each([&](int thread) {
    for (int x = start + thread; x < stop; x += team.size) {
      u32 &total = memory.total[x - start], &weight = memory.weight[x - start];
      if (p.kind == U8) add_column(bytes, p, row, x, total, weight);
      else if (p.kind == U16) add_column(reinterpret_cast<const u16*>(bytes), p, row, x, total, weight);
      else add_column(reinterpret_cast<const i16*>(bytes), p, row, x, total, weight);
    }
  });
  team.each([&](int thread) {
    for (int cell = first + thread; cell < end; cell += team.size)
      grid[row * SIDE + cell] = cell_mean(memory, p, cell, start);
  });
}

}  // namespace comit
