#include "kernels/gram.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/isa.h"

namespace nibble {
namespace {

// A tile of c that one worker fills, in panels: with both panels of x it stays in L2.
constexpr std::int64_t kTileA = 4;
constexpr std::int64_t kTileB = 12;

const GramKernels& Kernels() { return ForCurrentIsa(kRefGram, kAvx2Gram, kAvx512Gram); }

// One panel of a against `num_panels` of b, over whole rows.
void RunPanel(const GramKernels& kernels, const float* a, const float* b, std::int64_t b_stride,
              std::int64_t num_panels, std::int64_t num_rows, double* c, std::int64_t c_stride) {
  for (std::int64_t half = 0; half < kGramPanel; half += kGramRows) {
    for (std::int64_t p = 0; p < num_panels; p += kGramMaxPanels) {
      GramCall call;
      call.a = a + half;
      call.b = b + p * b_stride;
      call.b_stride = b_stride;
      call.num_panels = static_cast<int>(std::min<std::int64_t>(kGramMaxPanels, num_panels - p));
      call.rows = num_rows;
      call.c = c + half * c_stride + p * kGramPanel;
      call.c_stride = c_stride;
      kernels.gram(call);
    }
  }
}

// Calls take(i0, i1, j0, j1) for every tile of c, a square of panels, on the workers of the pool.
template <typename Take>
void ForTiles(ThreadPool& pool, std::int64_t num_panels, Take&& take) {
  const std::int64_t a_tiles = (num_panels + kTileA - 1) / kTileA;
  const std::int64_t b_tiles = (num_panels + kTileB - 1) / kTileB;
  pool.For(a_tiles * b_tiles, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t tile = begin; tile < end; ++tile) {
      const std::int64_t i0 = tile / b_tiles * kTileA;
      const std::int64_t j0 = tile % b_tiles * kTileB;
      take(i0, std::min(num_panels, i0 + kTileA), j0, std::min(num_panels, j0 + kTileB));
    }
  });
}

}  // namespace

void PackPanels(ThreadPool& pool, const float* x, std::int64_t num_rows, std::int64_t width,
                float* panels) {
  pool.For(PadToPanel(width) / kGramPanel, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t panel = begin; panel < end; ++panel) {
      const std::int64_t first = panel * kGramPanel;
      const auto count = static_cast<std::size_t>(std::min(kGramPanel, width - first));
      float* to = panels + panel * num_rows * kGramPanel;
      for (std::int64_t row = 0; row < num_rows; ++row, to += kGramPanel) {
        std::memset(to, 0, kGramPanel * sizeof(float));
        std::memcpy(to, x + row * width + first, count * sizeof(float));
      }
    }
  });
}

void AddGram(ThreadPool& pool, const float* panels, std::int64_t width, std::int64_t num_rows,
             double* c) {
  NIBBLE_CHECK(width % kGramPanel == 0, "widths in whole panels");
  const GramKernels& kernels = Kernels();
  const std::int64_t stride = num_rows * kGramPanel;
  ForTiles(pool, width / kGramPanel,
           [&](std::int64_t i0, std::int64_t i1, std::int64_t j0, std::int64_t j1) {
             for (std::int64_t row = 0; row < num_rows; row += kGramChain) {
               const float* x = panels + row * kGramPanel;
               for (std::int64_t i = i0; i < i1; ++i) {
                 const std::int64_t j = std::max(i, j0);
                 if (j < j1) {
                   RunPanel(kernels, x + i * stride, x + j * stride, stride, j1 - j,
                            std::min(kGramChain, num_rows - row),
                            c + i * kGramPanel * width + j * kGramPanel, width);
                 }
               }
             }
           });
}

void PackInt16Block(ThreadPool& pool, const float* x, const float* minus, std::int64_t num_rows,
                    std::int64_t width, std::int64_t panel_stride, std::uint32_t* panels) {
  NIBBLE_CHECK(num_rows > 0 && num_rows <= kGramBlock, "one block of rows");
  const GramKernels& kernels = Kernels();
  pool.For(PadToPanel(width) / kGramPanel, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t panel = begin; panel < end; ++panel) {
      const std::int64_t first = panel * kGramPanel;
      GramPackInt16Call call;
      call.x = x + first;
      call.minus = minus == nullptr ? nullptr : minus + first;
      call.stride = width;
      call.rows = num_rows;
      call.columns = static_cast<int>(std::min(kGramPanel, width - first));
      call.panel = panels + panel * panel_stride;
      kernels.pack_int16(call);
    }
  });
}

void AddInt16Gram(ThreadPool& pool, const std::uint32_t* a, const std::uint32_t* b,
                  std::int64_t width, std::int64_t panel_stride,
                  std::span<const std::int64_t> block_pairs, bool upper_only, double* c) {
  NIBBLE_CHECK(width % kGramPanel == 0, "widths in whole panels");
  const GramKernels& kernels = Kernels();
  const std::int64_t num_panels = width / kGramPanel;
  const auto add = [&](std::int64_t i, std::int64_t half, std::int64_t j, std::int64_t count,
                       std::int64_t word, std::int64_t pairs) {
    GramInt16Call call;
    call.a = a + i * panel_stride + word + half;
    call.b = b + j * panel_stride + word;
    call.b_stride = panel_stride;
    call.num_panels = static_cast<int>(count);
    call.pairs = pairs;
    call.c = c + (i * kGramPanel + half) * width + j * kGramPanel;
    call.c_stride = width;
    kernels.gram_int16(call);
  };
  ForTiles(pool, num_panels,
           [&](std::int64_t i0, std::int64_t i1, std::int64_t j0, std::int64_t j1) {
             std::int64_t word = 0;
             for (const std::int64_t pairs : block_pairs) {
               for (std::int64_t i = i0; i < i1; ++i) {
                 for (std::int64_t half = 0; half < kGramPanel; half += kGramRows) {
                   for (std::int64_t j = upper_only ? std::max(i, j0) : j0; j < j1;
                        j += kGramMaxPanels) {
                     add(i, half, j, std::min<std::int64_t>(kGramMaxPanels, j1 - j), word, pairs);
                   }
                 }
               }
               word += (1 + pairs) * kGramPanel;
             }
           });
}

void AddGramPanel(const float* a, const float* b, std::int64_t b_stride, std::int64_t num_panels,
                  std::int64_t num_rows, double* c, std::int64_t c_stride) {
  RunPanel(Kernels(), a, b, b_stride, num_panels, num_rows, c, c_stride);
}

void Downdate(ThreadPool& pool, const double* p, std::int64_t width, std::int64_t depth, double* c,
              std::int64_t c_stride) {
  NIBBLE_CHECK(width % kGramPanel == 0, "widths in whole panels");
  const GramKernels& kernels = Kernels();
  const std::int64_t panels = width / kGramPanel;
  pool.For(panels, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      for (std::int64_t j = i; j < panels; ++j) {
        for (std::int64_t half = 0; half < kGramPanel; half += kGramRows) {
          DowndateCall call;
          call.a = p + i * depth * kGramPanel + half;
          call.b = p + j * depth * kGramPanel;
          call.rows = depth;
          call.c = c + (i * kGramPanel + half) * c_stride + j * kGramPanel;
          call.c_stride = c_stride;
          kernels.downdate(call);
        }
      }
    }
  });
}

}  // namespace nibble
