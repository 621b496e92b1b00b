#!/usr/bin/env bash
# On a GPU machine without network, in the tree that was copied there: bash build/gpu-pack/install.sh. Puts the packed
# kernels and packages in place and prints what is there. PYTHON names the interpreter. Afterwards:
#   export PYTHONPATH=$PWD/build/gpu-pack/site
set -euo pipefail
pack=$(cd "$(dirname "$0")" && pwd)
cd "$pack/../.."
python=${PYTHON:-python3}
cp "$pack"/tide_kernels/*.so tide_kernels/
"$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$pack/site" "$pack"/wheels/*.whl
export PYTHONPATH="$pack/site"
echo "commit $(cat "$pack/commit.txt")"
"$python" - <<'END'
import importlib
import torch, triton
from tide_kernels import native

gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"torch {torch.__version__}, triton {triton.__version__}, {gpu}")
print(f"compiled CPU: {native.unavailable() or native.instruction_set()}")
print(f"compiled CUDA: {native.cuda_unavailable() or 'available'}")
for name in ("diffusers", "tyro", "sparsify", "sae_lens", "pytest_benchmark", "hypothesis"):
    try:
        print(f"{name} {getattr(importlib.import_module(name), '__version__', 'is there')}")
    except Exception as error:
        print(f"{name} cannot be imported: {error}")
END
