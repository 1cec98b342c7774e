// The kernels' bodies on the CPU: a loop where the GPU has blocks. See cpu_device.py.
#include "grid.cuh"
#include "png.cuh"
#include "present.cuh"
#include "runs.cuh"

using namespace comit;

struct Launch {
  int grid[3];
  int threads;
  int backwards;  // the order in which threads run within a step, and blocks within a grid
  Team team() const { return Team{threads, backwards != 0}; }
  template <class Block>
  void each(Block block) const {
    const int blocks = grid[0] * grid[1] * grid[2];
    for (int i = 0; i < blocks; ++i) {
      const int b = backwards ? blocks - 1 - i : i;
      block(b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]);
    }
  }
};

extern "C" {

int size_of_picture() { return sizeof(Picture); }
int size_of_scanlines() { return sizeof(Scanlines); }
int size_of_runs() { return sizeof(Runs); }
unsigned short half_of(float value) { return half_bits(value); }

void unfilter_rows(const Launch* launch, const u8* filtered, u8* samples, const Scanlines* lines) {
  static thread_local UnfilterMemory memory;
  launch->each([&](int x, int, int) {
    unfilter(launch->team(), memory, filtered, samples, lines[x]);
  });
}

void average_area(const Launch* launch, const u8* samples, const Picture* pictures, f32* grids) {
  static thread_local AverageMemory memory;
  launch->each([&](int x, int y, int z) {
    average(launch->team(), memory, samples, pictures[y], grids + static_cast<u64>(y) * CELLS, x, z);
  });
}

void present_pixels(const Launch* launch, const u8* samples, const Picture* pictures,
                    const f32* entries, f32* grids, f32* shown, void* out, i32 half, u32* status) {
  static thread_local PresentMemory memory;
  launch->each([&](int x, int, int) {
    u8* pixels = static_cast<u8*>(out) + static_cast<u64>(x) * CELLS * (half ? 2 : 4);
    present(launch->team(), memory, samples, pictures[x], entries, grids + x * CELLS,
            shown + x * CELLS, pixels, half, status + x);
  });
}

void encode_masks(const Launch* launch, const u8* masks, i32 threshold, u32* cursor,
                  u16* boundaries, Runs* runs) {
  static thread_local RunsMemory memory;
  launch->each([&](int x, int, int) {
    find_runs(launch->team(), memory, masks + x * 2 * CELLS, threshold, cursor, boundaries,
              runs + x);
  });
}
}
