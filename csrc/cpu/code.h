// What the operators need to know about the indices of a code before they follow them.
#pragma once

#include "tensors.h"

namespace tide {

struct Code {
  Tensor indices;             // [n_tokens, k] int32, contiguous
  std::vector<int32_t> used;  // places in use of each token
  bool ascending;             // every token's used places come first and ascend
};

// Throws where an index lies outside [-1, n_latents).
inline Code checked_code(const Tensor& given, int64_t n_latents) {
  Code code{code_indices(given), {}, true};
  const int64_t n_tokens = given.size(0), k = given.size(1);
  require(n_tokens <= INT32_MAX && k <= INT32_MAX && n_latents <= INT32_MAX,
          "tokens, places and latents have to be fewer than 2^31: pass smaller chunks");
  code.used.resize(n_tokens);
  std::vector<uint8_t> outside(n_tokens), disorder(n_tokens);
  const int32_t* indices = static_cast<const int32_t*>(code.indices.data_ptr());
  torch::stable::parallel_for(0, n_tokens, 1 + 65536 / (k + 1), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int32_t* row = indices + i * k;
      int32_t used = 0, previous = -1;
      bool bad = false, mixed = false;
      for (int64_t j = 0; j < k; ++j) {
        const int32_t l = row[j];
        bad |= l < -1 || l >= n_latents;
        mixed |= l >= 0 && (l < previous || used != j);
        used += l >= 0;
        previous = l;
      }
      code.used[i] = used;
      outside[i] = bad;
      disorder[i] = mixed;
    }
  });
  for (int64_t i = 0; i < n_tokens; ++i) {
    require(!outside[i], "indices of token " + std::to_string(i) + " lie outside [-1, " + std::to_string(n_latents) +
                             "): pass the code of these weights");
    code.ascending &= !disorder[i];
  }
  return code;
}

// Whether so many places pay for packing the weights: each latent is met a few times.
inline bool dense_enough(int64_t places, int64_t n_latents) { return places >= 3 * n_latents; }

}  // namespace tide
