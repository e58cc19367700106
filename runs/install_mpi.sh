#!/usr/bin/env bash
# Installs what `--features mpi` needs on Debian or Ubuntu: OpenMPI, and the library with which the
# bindings are generated. Other systems have the same under other names.
set -euo pipefail

if command -v mpirun >/dev/null && command -v mpicc >/dev/null && ls /usr/lib/llvm-*/lib/libclang*.so* >/dev/null 2>&1; then
  echo "mpi: already installed: $(mpirun --version | head -n 1)"
  exit 0
fi
become=()
[ "$(id -u)" -eq 0 ] || become=(sudo)
"${become[@]}" apt-get update
"${become[@]}" apt-get install --yes --no-install-recommends libopenmpi-dev openmpi-bin libclang-dev
