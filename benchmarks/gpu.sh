#!/usr/bin/env bash
# On a CUDA machine: the GPU-marked tests, then images/s and peak memory of the whole training step for taming f16.
# The table goes to benchmarks/results/gpu_<date>_<device>.md; that of the codebook search to search_<date>_<device>.md.
set -euo pipefail
cd "$(dirname "$0")/.."
python -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else "benchmarks/gpu.sh needs a CUDA device; torch sees none.")'
python -m pytest -m gpu -q
python benchmarks/codebook_search.py --device cuda
python benchmarks/gpu_step.py "$@"
