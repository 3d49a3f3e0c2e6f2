#!/usr/bin/env bash
# From nothing to a measured model: simulate two small datasets, train on them, evaluate.
# Everything lands in ./quickstart/. A second call goes on where the first one stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

echo "1/3  simulating the datasets"
if [[ -f quickstart/data/ns-sines.zarr/manifest.json && -f quickstart/data/ce-gauss.zarr/manifest.json ]]; then
  echo "     there already: quickstart/data"
else
  pelagos generate configs/quickstart/generate.yaml
fi

echo "2/3  training"
if [[ -d quickstart/runs/quickstart ]]; then
  pelagos resume quickstart --runs-dir quickstart/runs
else
  pelagos pretrain configs/quickstart/pretrain.yaml
fi

echo "3/3  evaluating on held-out trajectories"
pelagos evaluate quickstart runs_dir=quickstart/runs
