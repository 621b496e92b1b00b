#!/usr/bin/env bash
# Runs the tests of the compiled CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: the generic
# variant, AVX2's and the best this processor has. PYTHON names the interpreter; it needs torch, pytest and hypothesis.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
compiler=${CXX:-g++}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

torch=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)')
common=(-std=c++17 -O1 -g1 -fPIC -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
kernels=(-ffp-contract=fast -fno-math-errno -Wno-psabi)
avx2=(-mavx2 -mfma -mbmi2 -mpopcnt)
avx512=("${avx2[@]}" -mavx512f -mavx512bw -mavx512dq -mavx512vl)

variant() {
  local name=$1
  shift
  "$compiler" "${common[@]}" "${kernels[@]}" "$@" -DTIDE_ISA="$name" -c csrc/cpu/variant.cpp -o "$folder/variant_$name.o"
}
variant generic &
if [[ $(uname -m) == x86_64 ]]; then
  variant avx2 "${avx2[@]}"
  wait -n
  variant avx512 "${avx512[@]}" &
  variant avx512bf16 "${avx512[@]}" -mavx512bf16 -mavx512vnni
fi
wait
for source in csrc/schema.cpp csrc/cpu/*.cpp; do
  [[ $source == */variant.cpp ]] && continue
  while (($(jobs -rp | wc -l) >= 2)); do wait -n; done
  "$compiler" "${common[@]}" -DTORCH_TARGET_VERSION=0x020a000000000000 -isystem "$torch/include" -c "$source" \
    -o "$folder/$(basename "$source" .cpp).o" &
done
while (($(jobs -rp | wc -l))); do wait -n; done
"$compiler" "${common[@]}" -shared "$folder"/*.o -L"$torch/lib" -ltorch_cpu -lc10 -o "$folder/sanitized.so"

# Python itself is not built with the sanitizers, so their run-time libraries go first; it also leaks on purpose.
preload=""
for library in libasan.so libubsan.so libstdc++.so; do preload+=" $("$compiler" -print-file-name=$library)"; done
export TIDE_NATIVE_LIBRARY="$folder/sanitized.so" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
isas=(generic)
if grep -qw avx2 /proc/cpuinfo; then isas+=(avx2); fi
if grep -qw avx512_bf16 /proc/cpuinfo; then isas+=(avx512bf16); elif grep -qw avx512vl /proc/cpuinfo; then isas+=(avx512); fi
for isa in "${isas[@]}"; do
  export TIDE_NATIVE_ISA=$isa
  echo "sanitizers: $isa"
  LD_PRELOAD=$preload "$python" -m pytest -q -p no:cacheprovider --confcutdir=tests/kernels tests/kernels/native \
    --ignore=tests/kernels/native/test_cuda.py --ignore=tests/kernels/native/test_build.py
done
