#!/usr/bin/env bash
# The whole of Pelagos, small: simulate physics, pretrain, evaluate, fine-tune. Run it from the
# repository's root, with `pelagos` on the PATH (`make quickstart` does both). Running it again goes on
# where it stopped, or shows what is there.
set -euo pipefail

RUNS=quickstart/runs

say() { printf '\n\033[1m== %s\033[0m\n' "$1"; }

# begin NAME VERB JOB.yaml: starts the run of a job file, or goes on with it
begin() {
  if [ -e "$RUNS/$1/job.yaml" ]; then
    say "$STEP  pelagos resume $1 --runs-dir $RUNS"
    pelagos resume "$1" --runs-dir "$RUNS"
  else
    say "$STEP  pelagos $2 $3"
    pelagos "$2" "$3"
  fi
}

STEP="1/5 simulate:"
say "$STEP  pelagos generate configs/quickstart/generate.yaml"
pelagos generate configs/quickstart/generate.yaml

STEP="2/5 pretrain:"
begin quickstart pretrain configs/quickstart/pretrain.yaml

STEP="3/5 evaluate:"
say "$STEP  pelagos evaluate quickstart --runs-dir $RUNS"
pelagos evaluate quickstart --runs-dir "$RUNS"

STEP="4/5 fine-tune:"
say "$STEP  pelagos generate configs/quickstart/downstream.yaml"
pelagos generate configs/quickstart/downstream.yaml
begin quickstart-finetuned finetune configs/quickstart/finetune.yaml
begin quickstart-scratch pretrain configs/quickstart/scratch.yaml

STEP="5/5 compare:"
say "$STEP  pelagos compare quickstart-finetuned quickstart-scratch --runs-dir $RUNS"
pelagos compare quickstart-finetuned quickstart-scratch --runs-dir "$RUNS"
