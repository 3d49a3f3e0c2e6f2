#!/usr/bin/env bash
# The whole of Pelagos, small: simulate physics, pretrain, evaluate. Run it from the repository's
# root, with `pelagos` on the PATH (`make quickstart` does both). Running it again goes on where it
# stopped, or shows what is there.
set -euo pipefail

say() { printf '\n\033[1m== %s\033[0m\n' "$1"; }

say "1/3  simulate: pelagos generate configs/quickstart/generate.yaml"
pelagos generate configs/quickstart/generate.yaml

if [ -e quickstart/runs/quickstart/job.yaml ]; then
  say "2/3  pretrain: pelagos resume quickstart --runs-dir quickstart/runs"
  pelagos resume quickstart --runs-dir quickstart/runs
else
  say "2/3  pretrain: pelagos pretrain configs/quickstart/pretrain.yaml"
  pelagos pretrain configs/quickstart/pretrain.yaml
fi

say "3/3  evaluate: pelagos evaluate quickstart --runs-dir quickstart/runs"
pelagos evaluate quickstart --runs-dir quickstart/runs
