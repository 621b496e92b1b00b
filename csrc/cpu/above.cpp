// select_above, keep_above and screened_above: rows, or tiles of a product, over threads. See above.h.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "screened.h"
#include "thresholds.h"

namespace tide {
namespace {

// Integers in the order of the floats; 0 and -0.0 are one, and so are all NaNs.
int32_t order_of(int32_t bits, int32_t infinity) {
  const int32_t magnitude = bits & INT32_MAX;
  return magnitude > infinity ? INT32_MAX : bits < 0 ? -magnitude : magnitude;
}
int32_t order_of(int32_t bits) { return order_of(bits, 0x7f800000); }
int32_t order_of(int16_t bits) { return order_of(static_cast<int32_t>(static_cast<uint32_t>(bits) << 16)); }

// Moves the `capacity` largest of the entries to the front, still ascending; ties go to the first.
template <class Bits>
void keep_largest(Bits* values, int32_t* columns, int64_t count, int64_t capacity) {
  std::vector<int32_t> places(count);
  std::iota(places.begin(), places.end(), 0);
  std::nth_element(places.begin(), places.begin() + capacity, places.end(), [&](int32_t a, int32_t b) {
    const int32_t first = order_of(values[a]), second = order_of(values[b]);
    return first > second || (first == second && a < b);
  });
  std::sort(places.begin(), places.begin() + capacity);
  for (int64_t j = 0; j < capacity; ++j) {
    values[j] = values[places[j]];
    columns[j] = columns[places[j]];
  }
}

// The code of a row from its entries.
template <class Bits>
void write_row(Bits* values, int32_t* columns, int64_t count, int64_t capacity, Bits* out_values, int32_t* out_indices) {
  if (count > capacity) keep_largest(values, columns, count, capacity);
  const int64_t used = std::min(count, capacity);
  if (values != out_values) {
    std::copy_n(values, used, out_values);
    std::copy_n(columns, used, out_indices);
  }
  std::fill(out_values + used, out_values + capacity, Bits{0});
  std::fill(out_indices + used, out_indices + capacity, -1);
}

struct Rows {
  Tensor pre;
  Element element;
  int64_t n_tokens, n;

  explicit Rows(const Tensor& given) : pre((require_matrix(given, "pre"), adjacent_columns(given))) {
    element = element_of(pre, "pre");
    n_tokens = pre.size(0), n = pre.size(1);
    require(n <= INT32_MAX - kSpare, "pre has 2^31 columns or more: int32 indices cannot name them");
  }

  template <class F>
  void over(const F& f) const {
    torch::stable::parallel_for(0, n_tokens, 1 + 16384 / (n + 1), f);
  }
};

template <class Bits>
void select_rows(const Rows& rows, const Thresholds& thresholds, int64_t capacity, Bits* values, int32_t* indices,
                 int32_t* counts) {
  const Kernels& run = kernels();
  const Matrix pre = matrix(rows.pre);
  rows.over([&](int64_t first, int64_t last) {
    const Scratch<Bits> found(rows.n + kSpare);
    const Scratch<int32_t> columns(rows.n + kSpare);
    for (int64_t i = first; i < last; ++i) {
      const int64_t count = run.above_row(rows.element, pre, rows.n, thresholds, i, found.data(), columns.data());
      counts[i] = static_cast<int32_t>(count);
      write_row(found.data(), columns.data(), count, capacity, values + i * capacity, indices + i * capacity);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> select_above(const Tensor& pre, const Tensor& threshold, std::optional<Tensor> group,
                                                std::optional<Tensor> cut, int64_t capacity) {
  const Rows rows(pre);
  require(capacity >= 0 && capacity <= rows.n, "capacity is " + std::to_string(capacity) + ", not from 0 to " +
                                                   std::to_string(rows.n) + ", the latents");
  const GivenThresholds given(threshold, group, cut, rows.n_tokens, rows.n);
  Tensor values = torch::stable::new_empty(rows.pre, {rows.n_tokens, capacity});
  Tensor indices = torch::stable::new_empty(rows.pre, {rows.n_tokens, capacity}, ScalarType::Int);
  Tensor counts = torch::stable::new_empty(rows.pre, {rows.n_tokens}, ScalarType::Int);
  int32_t *index = static_cast<int32_t*>(indices.data_ptr()), *count = static_cast<int32_t*>(counts.data_ptr());
  if (rows.element == Element::bf16) {
    select_rows(rows, given.args, capacity, static_cast<int16_t*>(values.data_ptr()), index, count);
  } else {
    select_rows(rows, given.args, capacity, static_cast<int32_t*>(values.data_ptr()), index, count);
  }
  return {std::move(values), std::move(indices), std::move(counts)};
}

Tensor keep_above(const Tensor& pre, const Tensor& threshold, std::optional<Tensor> group, std::optional<Tensor> cut,
                  Tensor out) {
  const Rows rows(pre);
  require_shape(out, "out", rows.n_tokens, rows.n);
  require(out.scalar_type() == pre.scalar_type(), "out has another dtype than pre");
  require(rows.n <= 1 || out.stride(1) == 1, "columns of out do not lie side by side: pass a contiguous tensor");
  require(rows.n_tokens <= 1 || out.stride(0) >= rows.n, "rows of out overlap: pass a contiguous tensor");
  const GivenThresholds given(threshold, group, cut, rows.n_tokens, rows.n);
  Tensor counts = torch::stable::new_empty(rows.pre, {rows.n_tokens}, ScalarType::Int);
  int32_t* count = static_cast<int32_t*>(counts.data_ptr());
  char* to = static_cast<char*>(out.data_ptr());
  const int64_t apart = out.stride(0) * out.element_size();
  const Matrix from = matrix(rows.pre);
  rows.over([&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      count[i] = static_cast<int32_t>(kernels().keep_above_row(rows.element, from, rows.n, given.args, i, to + i * apart));
  });
  return counts;
}

// What is above the thresholds in the product of a tile of tokens, by tile of latents.
struct Product {
  const ScreenArgs& args;
  Thresholds thresholds;
  int64_t latents, tiles;
  std::vector<uint64_t> above;  // [tiles, tokens]
  std::vector<int32_t> starts;  // likewise
  std::vector<std::vector<float>> values;
  std::vector<int64_t> candidates;

  Product(const ScreenArgs& args, const Thresholds& thresholds)
      : args(args), thresholds(thresholds), latents(kScreenVectors * kernels().lanes),
        tiles((args.n + latents - 1) / latents), above(tiles * args.n_tokens), starts(tiles * args.n_tokens),
        values(tiles), candidates(tiles) {}

  // Returns the share of the entries that had to be computed in float32.
  double compute() {
    screen_tokens(args);
    torch::stable::parallel_for(0, tiles, 1, [&](int64_t first, int64_t last) {
      const Scratch<uint32_t> scratch(above_scratch(args.d, args.n_tokens, kernels().lanes));
      const Scratch<float> found(args.n_tokens * latents + 1);
      for (int64_t t = first; t < last; ++t) {
        TileAbove tile{above.data() + t * args.n_tokens, starts.data() + t * args.n_tokens, found.data(), 0, 0};
        kernels().above_tile(args, thresholds, t, scratch.data(), tile);
        values[t].assign(tile.values, tile.values + tile.count);
        candidates[t] = tile.candidates;
      }
    });
    const int64_t places = std::accumulate(candidates.begin(), candidates.end(), int64_t{0});
    return static_cast<double>(places) / static_cast<double>(args.n_tokens * args.n);
  }

  int64_t count(int64_t token) const {
    int64_t count = 0;
    for (int64_t t = 0; t < tiles; ++t) count += __builtin_popcountll(above[t * args.n_tokens + token]);
    return count;
  }

  // The entries of a token from tile t, and behind them the next place.
  int64_t append(int64_t t, int64_t token, float* to, int32_t* columns) const {
    const float* from = values[t].data() + starts[t * args.n_tokens + token];
    int64_t count = 0;
    for (uint64_t rest = above[t * args.n_tokens + token]; rest; rest &= rest - 1, ++count) {
      to[count] = from[count];
      columns[count] = static_cast<int32_t>(t * latents + __builtin_ctzll(rest));
    }
    return count;
  }
};

constexpr int64_t kTileTokens = 512;  // whose sums with a tile of latents stay in the second-level cache
constexpr int64_t kRowsAtOnce = 16;  // whose entries in a tile are read together: they lie side by side

// Tokens first .. last, at most kRowsAtOnce.
void write_rows(const Product& product, int64_t first, int64_t last, int64_t capacity, float* values, int32_t* indices,
                int32_t* counts) {
  struct Row {
    float* values;
    int32_t* columns;
    int64_t count;
    std::vector<float> more_values;
    std::vector<int32_t> more_columns;
  } rows[kRowsAtOnce];
  for (int64_t i = first; i < last; ++i) {
    Row& row = rows[i - first];
    row.values = values + i * capacity, row.columns = indices + i * capacity, row.count = 0;
    counts[i] = static_cast<int32_t>(product.count(i));
    if (counts[i] <= capacity) continue;
    row.more_values.resize(counts[i]), row.more_columns.resize(counts[i]);
    row.values = row.more_values.data(), row.columns = row.more_columns.data();
  }
  for (int64_t t = 0; t < product.tiles; ++t) {
    for (int64_t i = first; i < last; ++i) {
      Row& row = rows[i - first];
      row.count += product.append(t, i, row.values + row.count, row.columns + row.count);
    }
  }
  for (int64_t i = first; i < last; ++i) {
    Row& row = rows[i - first];
    write_row(reinterpret_cast<int32_t*>(row.values), row.columns, row.count, capacity,
              reinterpret_cast<int32_t*>(values + i * capacity), indices + i * capacity);
  }
}

// Whether a screen of few tokens and a part of the latents leaves at most a `share` to float32.
bool promising(ScreenArgs args, const Thresholds& thresholds, double share) {
  if (args.n < 64 * kTrial) return true;
  args.n_tokens = std::min(args.n_tokens, kTrial);
  args.n = (args.n + kTrial - 1) / kTrial;
  return Product(args, thresholds).compute() <= share;
}

// How many tokens are done.
int64_t screened_above(const Tensor& x, const Tensor& W, std::optional<Tensor> bias, const Tensor& threshold,
                       std::optional<Tensor> group, double int8_share, double bf16_share, Tensor values, Tensor indices,
                       Tensor counts) {
  require_matrix(W, "W");
  require_matrix(values, "values");
  const int64_t n = W.size(0), n_tokens = values.size(0), capacity = values.size(1);
  require_shape(x, "x", n_tokens, W.size(1));
  require_shape(indices, "indices", n_tokens, capacity);
  require(n <= INT32_MAX - 64, "W has 2^31 rows or more: int32 indices cannot name them");
  require(indices.scalar_type() == ScalarType::Int && indices.is_contiguous() &&
              counts.scalar_type() == ScalarType::Int && counts.is_contiguous() && counts.numel() == n_tokens,
          "indices and counts have to be contiguous int32");
  float* value = target(values, "values", n_tokens * capacity);
  int32_t *index = static_cast<int32_t*>(indices.data_ptr()), *count = static_cast<int32_t*>(counts.data_ptr());
  const GivenThresholds given(threshold, group, std::nullopt, n_tokens, n);
  const int64_t tile = std::min(kTileTokens, n_tokens);
  Screened operands(x, W, bias, tile);
  const Tensor panels = operands.reals({tile, panel_floats(W.size(1))});
  operands.args.panels = Screened::data(panels);
  int64_t done = 0;
  for (const Screen screen : {Screen::int8, Screen::bf16}) {
    const double share = screen == Screen::int8 ? (W.size(1) <= kMostBytes ? int8_share : 0) : bf16_share;
    operands.args.screen = screen;
    bool worthwhile = share > 0;
    for (bool tried = false; worthwhile && done < n_tokens; tried = true) {
      const ScreenArgs args = operands.part(done, std::min(tile, n_tokens - done));
      const Thresholds thresholds = given.from(done);
      if (!tried && !promising(args, thresholds, share)) break;
      Product product(args, thresholds);
      worthwhile = product.compute() <= share;
      const int64_t blocks = (args.n_tokens + kRowsAtOnce - 1) / kRowsAtOnce;
      torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
        for (int64_t block = first; block < last; ++block)
          write_rows(product, block * kRowsAtOnce, std::min((block + 1) * kRowsAtOnce, args.n_tokens), capacity,
                     value + done * capacity, index + done * capacity, count + done);
      });
      done += args.n_tokens;
    }
  }
  return done;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CPU, m) {
  m.impl("select_above", TORCH_BOX(&select_above));
  m.impl("keep_above", TORCH_BOX(&keep_above));
  m.impl("screened_above", TORCH_BOX(&screened_above));
}

}  // namespace tide
