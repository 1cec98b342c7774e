// The kernels: which block does what. Their bodies are in the headers, which the CPU compiles too.
#include "grid.cuh"
#include "png.cuh"
#include "present.cuh"
#include "runs.cuh"

using namespace comit;

// Grid (images with filtered rows), block (256).
extern "C" __global__ void __launch_bounds__(ROWS)
unfilter_rows(const u8* filtered, u8* samples, const Scanlines* scanlines) {
  __shared__ UnfilterMemory memory;
  unfilter(Team{static_cast<int>(blockDim.x)}, memory, filtered, samples, scanlines[blockIdx.x]);
}

// Grid (224 rows of cells, images, most tiles of a row), block (256).
extern "C" __global__ void __launch_bounds__(256)
average_area(const u8* samples, const Picture* pictures, f32* grids) {
  __shared__ AverageMemory memory;
  average(Team{static_cast<int>(blockDim.x)}, memory, samples, pictures[blockIdx.y],
          grids + static_cast<u64>(blockIdx.y) * CELLS, blockIdx.x, blockIdx.z);
}

// Grid (images), block (1024).
extern "C" __global__ void __launch_bounds__(1024)
present_pixels(const u8* samples, const Picture* pictures, const f32* entries, f32* grids,
               f32* shown, void* out, i32 half, u32* status) {
  __shared__ PresentMemory memory;
  const u64 image = blockIdx.x;
  u8* pixels = static_cast<u8*>(out) + image * CELLS * (half ? sizeof(u16) : sizeof(f32));
  present(Team{static_cast<int>(blockDim.x)}, memory, samples, pictures[image], entries,
          grids + image * CELLS, shown + image * CELLS, pixels, half, status + image);
}

// Grid (images), block (224).
extern "C" __global__ void __launch_bounds__(SIDE)
encode_masks(const u8* masks, i32 threshold, u32* cursor, u16* boundaries, Runs* runs) {
  __shared__ RunsMemory memory;
  const u64 image = blockIdx.x;
  find_runs(Team{static_cast<int>(blockDim.x)}, memory, masks + image * 2 * CELLS, threshold,
            cursor, boundaries, runs + image);
}
