#!/usr/bin/env bash
# Makes .venv and installs MemFactory into it; without an NVIDIA GPU torch is the CPU build, never gigabytes of CUDA.
# Usage: scripts/install.sh [extras], for example scripts/install.sh dev
set -euo pipefail
cd "$(dirname "$0")/.."
extras="${1:-}"
target="."
[ -n "$extras" ] && target=".[$extras]"
stamp=".venv/.installed-${extras:-plain}"
if [ -f "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt requirements/cpu.txt ]; then
  exit 0
fi
python="${PYTHON:-python3}"
[ -x .venv/bin/python ] || "$python" -m venv .venv
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
  .venv/bin/python -m pip install -e "$target"
else
  # A wheel of the CPU build in a folder that pip searches (--find-links) wins, then PyTorch's own CPU index.
  # On Linux the package index holds only CUDA builds, so the script stops rather than install one.
  if ! .venv/bin/python -c 'import torch' >/dev/null 2>&1; then
    .venv/bin/python -m pip install --no-deps --only-binary :all: 'torch==2.13.0+cpu' 2>/dev/null ||
      .venv/bin/python -m pip install --no-deps --index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0' ||
      { [ "$(uname -s)" != Linux ] && .venv/bin/python -m pip install --no-deps 'torch==2.13.0'; } ||
      { echo "The CPU build of torch 2.13.0 could not be found; install torch yourself in .venv and run this again." >&2; exit 1; }
  fi
  .venv/bin/python -m pip install -c requirements/cpu.txt -e "$target"
fi
touch "$stamp"
