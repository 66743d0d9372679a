#include <algorithm>
#include <cmath>

#include "kernels/gram_kernel.h"

namespace nibble {
namespace {

void Gram(const GramCall& call) {
  for (std::int64_t begin = 0; begin < call.rows; begin += kGramChain) {
    const std::int64_t end = std::min(call.rows, begin + kGramChain);
    for (std::int64_t i = 0; i < kGramRows; ++i) {
      for (std::int64_t j = 0; j < call.num_panels * kGramPanel; ++j) {
        const float* b = call.b + j / kGramPanel * call.b_stride + j % kGramPanel;
        float chain = 0.0F;
        for (std::int64_t t = begin; t < end; ++t) {
          chain = std::fma(call.a[t * kGramPanel + i], b[t * kGramPanel], chain);
        }
        call.c[i * call.c_stride + j] += static_cast<double>(chain);
      }
    }
  }
}

void Downdate(const DowndateCall& call) {
  for (std::int64_t i = 0; i < kGramRows; ++i) {
    for (std::int64_t j = 0; j < kGramPanel; ++j) {
      double& c = call.c[i * call.c_stride + j];
      for (std::int64_t t = 0; t < call.rows; ++t) {
        c = std::fma(-call.a[t * kGramPanel + i], call.b[t * kGramPanel + j], c);
      }
    }
  }
}

}  // namespace

const GramKernels kRefGram = {.name = "ref", .gram = Gram, .downdate = Downdate};

}  // namespace nibble
