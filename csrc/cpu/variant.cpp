// One instruction set's table: compiled once per set with -DTIDE_ISA=name and the flags setup.py gives it.
#include "above.h"
#include "adamw.h"
#include "latents.h"
#include "sampled.h"
#include "squares.h"

#define TIDE_STRING_OF(x) #x
#define TIDE_STRING(x) TIDE_STRING_OF(x)

namespace tide {
namespace TIDE_ISA {

extern const Kernels table;
const Kernels table = {TIDE_STRING(TIDE_ISA), kLanes,         plan,         pack,           select,
                       gather_panel,          gather_rows,    sampled_panels, sampled_rows, scatter,
                       walk,                  screen_tokens,  screen_product, screen_rows,  screen_exact,
                       screen_finish,         above_row,      keep_above_row, above_tile,   squares,
                       adamw};

}  // namespace TIDE_ISA
}  // namespace tide
