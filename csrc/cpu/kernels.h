// What the instruction-set variants offer to the operators. Nothing here knows torch.
//
// variant.cpp is compiled once per instruction set, each time into a namespace and a table of its own; isa.cpp
// picks the table at run time. Functions in this header are static: an inline function shared by translation
// units built for different machines could be linked from the wrong one.
#pragma once

#include <cstdint>

namespace tide {

enum class Element : int { f32, bf16, f16 };

// How d_model columns are cut into panels: `units` groups of `unit_columns` columns, spread evenly over `panels`.
// A packed matrix holds panel after panel, each [rows][columns of the panel], zeros after the last column, so that
// the part of every row that a kernel works on is contiguous and stays in the second-level cache.
struct Plan {
  int64_t unit_columns;
  int64_t units;
  int64_t panels;
};

static inline int64_t padded_columns(const Plan& plan) { return plan.units * plan.unit_columns; }
static inline int64_t panel_units(const Plan& plan, int64_t panel) {
  return plan.units / plan.panels + (panel < plan.units % plan.panels);
}
static inline int64_t panel_column(const Plan& plan, int64_t panel) {
  const int64_t extra = plan.units % plan.panels;
  return (plan.units / plan.panels * panel + (panel < extra ? panel : extra)) * plan.unit_columns;
}

struct Matrix {
  const void* data;
  int64_t stride;  // elements from row to row; columns are adjacent
};

// The places of a code by latent: latent l owns offsets[l] .. offsets[l + 1], tokens ascending.
// Place p of them is values[tokens[p] * k + slots[p]].
struct Layout {
  const int64_t* offsets;
  const int32_t* tokens;
  const int32_t* slots;
};

struct SelectArgs {
  Matrix pre;
  int64_t n, k;
  void* values;
  int32_t* indices;
};

struct TokenArgs {  // gather and sampled
  Plan plan;
  int64_t d, n, k;
  const float* values;  // gather only, [tokens, k]
  const int32_t* indices;
  const int32_t* used;  // places in use of each token, all in front and ascending
  Matrix rows;          // sampled only, float
  Matrix W;
  float* out;  // gather: [tokens, d]; sampled: [tokens, k]
};

struct ScatterArgs {
  Plan plan;
  int64_t d, n_tokens, k;
  Layout layout;
  int64_t capacity;  // block_capacity of the layout
  const float* values;
  const void* rows;  // packed
  float* out;        // [n, d]
};

struct WalkArgs {
  Plan plan;
  int64_t d, n_tokens, k;
  Layout layout;
  int64_t capacity;
  const float* values;
  const void* grad;   // packed
  const void* x_mod;  // packed, or null
  Matrix W_dec;
  const float* extra;  // [tokens, k] or null
  float* grad_values;  // [tokens, k]
  float* grad_W_dec;   // [n, d] or null
  float* grad_W_enc;   // [n, d] or null
  float* grad_b_enc;   // [n] or null
  bool replaces;       // what gradients hold: they begin as start times the weights below [n, d], that of the bias as 0
  float start;
  const float *start_W_dec, *start_W_enc;
  double* squares;    // [n] or null: of a latent's rows of the three, once they are finished
};

enum class Screen : int { int8, bf16 };

struct ScreenArgs {  // see screen.h
  Screen screen;
  int64_t d, n, n_tokens, k;
  Matrix x, W;  // float
  const float* bias;
  uint32_t* packed;           // [tokens, most_pairs(d)] at most: tokens in the numbers of the screen
  float* panels;              // [panels of columns, tokens, columns of a panel], or null: the tokens in float32
  float *alpha, *beta, *cut;  // [tokens]
  float* scale;               // [tokens], int8 only
  int32_t* offset;            // [tokens], int8 only
  float *size, *error;        // [n], padded to whole vectors
  uint16_t* product;          // [tokens, n] in bfloat16, rows apart by `stride`
  int64_t stride;
  int64_t capacity;           // places for the candidates of a token
  int32_t *columns, *used;    // [tokens, capacity] and [tokens]; used is -1 where they do not fit
  float* exact;               // [tokens, capacity]
  float* values;              // [tokens, k]
  int32_t* indices;           // [tokens, k]
};

// Which entries of a matrix are kept: those above their threshold, and those that equal it and whose latent is not above
// the row's cut. NaN is above every threshold.
struct Thresholds {
  const float* data;
  int64_t group_stride, latent_stride;  // 0 where one row, or one number, serves all
  const int64_t* group;                 // [rows], or null: the first row of thresholds
  const int32_t* cut;                   // [rows], or null: nothing that is equal is kept
};

// What is above its threshold in a product of all tokens and a tile of latents, token by token.
struct TileAbove {
  uint64_t* latents;  // [tokens]: bit j is the tile's j-th latent
  int32_t* starts;    // [tokens]: where a token's values begin
  float* values;      // room for a tile and one more
  int64_t count;      // values
  int64_t candidates;
};

struct AdamWArgs {  // a parameter's, see adamw.h
  float *parameter, *exp_avg, *exp_avg_sq;
  const float* gradient;
  float scale;           // of the gradient
  float beta2;
  float share1, share2;  // of the gradient in the moments: 1 - beta1, 1 - beta2
  float decay;           // what is left of the parameter: 1 - lr * weight_decay
  float step_size;       // lr / (1 - beta1^t)
  float root_factor;     // 1 / sqrt(1 - beta2^t)
  float eps;
};

struct Kernels {
  const char* name;
  int64_t lanes;
  // A plan whose panels of `rows` rows fit into the second-level cache.
  Plan (*plan)(Element, int64_t d, int64_t rows);
  // Rows first .. last of a matrix of `rows` rows into its packed form, rounded to `to`.
  void (*pack)(Element from, Element to, const Plan&, Matrix, int64_t d, int64_t rows, int64_t first, int64_t last,
               void* packed);
  // scratch: 2 * select_scratch(n) integers
  void (*select)(Element, const SelectArgs&, int64_t first, int64_t last, int32_t* scratch);
  // Tokens first .. last; scratch of those that pack: kSegmentBytes and an int32 per token.
  void (*gather_panel)(Element, const TokenArgs&, int64_t panel, int64_t first, int64_t last, void* scratch);
  void (*gather_rows)(Element, const TokenArgs&, int64_t first, int64_t last);
  void (*sampled_panels)(Element, const TokenArgs&, int64_t first, int64_t last, void* scratch);
  void (*sampled_rows)(Element, const TokenArgs&, int64_t first, int64_t last);
  // Latents first .. last; scratch: capacity floats, three times as many for walk
  void (*scatter)(Element, const ScatterArgs&, int64_t first, int64_t last, float* scratch);
  void (*walk)(Element, const WalkArgs&, int64_t first, int64_t last, float* scratch);
  // The steps of a screened selection, in order; a tile of latents is kScreenVectors * lanes of them.
  void (*screen_tokens)(const ScreenArgs&, int64_t first, int64_t last);
  void (*screen_product)(const ScreenArgs&, int64_t first_tile, int64_t last_tile, uint32_t* scratch);
  void (*screen_rows)(const ScreenArgs&, int64_t first, int64_t last, int32_t* scratch);
  void (*screen_exact)(const ScreenArgs&, int64_t first_latent, int64_t last_latent, int32_t* scratch);
  void (*screen_finish)(const ScreenArgs&, int64_t first, int64_t last, int32_t* scratch);
  // What is above the thresholds: of a row, its entries, their columns and how many; both outputs have room for
  // kSpare more than n.
  int64_t (*above_row)(Element, const Matrix& pre, int64_t n, const Thresholds&, int64_t row, void* values,
                       int32_t* columns);
  // Likewise in their places, in a row of zeros, which may be that of pre.
  int64_t (*keep_above_row)(Element, const Matrix& pre, int64_t n, const Thresholds&, int64_t row, void* out);
  // Of a product, after screen_tokens; scratch: above_scratch integers.
  void (*above_tile)(const ScreenArgs&, const Thresholds&, int64_t tile, uint32_t* scratch, TileAbove&);
  // The sum of the squares of adjacent elements.
  double (*squares)(const float* from, int64_t count);
  // Elements first .. last
  void (*adamw)(const AdamWArgs&, int64_t first, int64_t last);
};

constexpr int64_t kScreenVectors = 4;
constexpr int64_t kSpare = 16;
// Pairs of columns, padded to the widest vectors.
static inline int64_t most_pairs(int64_t d) { return (d + 31) / 32 * 16; }

constexpr int64_t kAboveTokens = 32;  // whose candidates are computed together
constexpr int64_t kWidestPanel = 128;  // columns
static inline int64_t panel_floats(int64_t d) { return (d + kWidestPanel - 1) / kWidestPanel * kWidestPanel; }
// A tile in the numbers of a screen, its sums with all tokens, its last columns, and sums with a few tokens.
static inline int64_t above_scratch(int64_t d, int64_t n_tokens, int64_t lanes) {
  return (most_pairs(d) + n_tokens + kWidestPanel + kAboveTokens * lanes) * kScreenVectors * lanes;
}

constexpr int64_t kSegmentBytes = 256 * 1024;  // of a panel of W, a quarter of a common second-level cache
constexpr int64_t kBlockLatents = 256;         // latents whose weights and gradients are walked together
constexpr int64_t kBlockPlaces = 16384;        // and their places, unless a single latent has more

static inline int64_t select_scratch(int64_t n) { return n + 64; }
static inline int64_t block_capacity(const Layout& layout, int64_t n_latents) {
  int64_t most = kBlockPlaces;
  for (int64_t l = 0; l < n_latents; ++l) {
    const int64_t places = layout.offsets[l + 1] - layout.offsets[l];
    most = places > most ? places : most;
  }
  return most;
}

// The table for this machine, or the one TIDE_NATIVE_ISA names; throws std::runtime_error if it cannot run here.
const Kernels& kernels();

}  // namespace tide
