#!/usr/bin/env bash
# The embedded model of scenes, from nothing: every command of the pipeline in its order.
#
#   runs/embedded.sh WORK            everything goes to WORK; stop it with Ctrl-C and start it again, it continues
#   runs/embedded.sh WORK gpu        trains on a GPU (docs/devices.md); TESSERA must name a program that was built for it
#
# Each command reads what the ones before it wrote. The settings are those of configs/embedded.toml.
# TESSERA names another program than the one that cargo builds, for runs that must not change under a rebuild.
#
# Needs what runs/fetch_emoji.sh needs.
set -euo pipefail

[ $# -eq 1 ] || [ $# -eq 2 ] ||
  { echo "embedded: wanted the folder to work in, and a device if it is not the processor: runs/embedded.sh WORK [gpu]" >&2; exit 2; }
device=${2:-cpu}
repo=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
cd "$1"

tessera() {
  if [ -n "${TESSERA:-}" ]; then "$TESSERA" "$@"; else
    cargo run --release --quiet --manifest-path "$repo/Cargo.toml" -- "$@"
  fi
}

# train TASK RUN …: trains in the folder RUN, or continues what is there; a finished run only has its model written again.
train() {
  local task=$1 run=$2 resume=
  shift 2
  if ls -d "$run"/checkpoints/step_* >/dev/null 2>&1; then resume=--resume; fi
  tessera train "$task" --config embedded --run "$run" --device "$device" "$@" ${resume:+"$resume"}
  # Ctrl-C saves and is no error, but what follows needs the complete run, whose last checkpoint is that of its last step.
  local steps
  steps=$(sed -n "/^\[train_$task\]/,/^\[/s/^steps = //p" "$run/config.toml")
  [ -d "$run/checkpoints/$(printf 'step_%06d' "$steps")" ] ||
    { echo "embedded: stopped; start runs/embedded.sh again to continue" >&2; exit 130; }
}

# 1. The emoji sets as their makers publish them.
"$repo/runs/fetch_emoji.sh" packages

# 2. Scenes of 128 pixels; the validation split shows each held-out combination twice.
tessera data scenes --packages packages --out scenes --size 128 --count 16000 --val 640

# 3. The caption vocabulary (paper §2.2), of English and Chinese captions.
tessera train bpe --config embedded --data scenes --run bpe

# 4. Stage 1 (paper §2.1, §A): the dVAE.
train dvae dvae --data scenes

# 5. Stage 2 (paper §2.2, §B): the transformer, on scenes that are composed and encoded as they are read, so that no two epochs
#    repeat.
fresh=(--set 'data.scenes={ packages = "packages", size = 128, seed = 1 }')
train prior prior --data scenes --bpe bpe/tokenizer.json --dvae dvae/dvae.tessera.safetensors "${fresh[@]}"

# 6. The contrastive model that ranks what is drawn (paper §2.6), and another from another seed that judges what the first one chose.
train rerank rerank --data scenes --bpe bpe/tokenizer.json --dvae dvae/dvae.tessera.safetensors --seed 1 "${fresh[@]}"
train rerank judge --data scenes --bpe bpe/tokenizer.json --dvae dvae/dvae.tessera.safetensors --seed 2 "${fresh[@]}"

# 7. Small enough to live inside the program: the matrices of the prior and of the contrastive model in 8 bits.
tessera pack prior/model.tessera.safetensors --rerank rerank/rerank.tessera.safetensors --out embedded.tessera.safetensors

# 8. What it draws of the combinations that training never showed: the figures of its card.
tessera eval zero-shot --model embedded.tessera.safetensors --judge judge/rerank.tessera.safetensors --packages packages \
  --sheet zero-shot.png --json > zero-shot.json
echo "the model is $PWD/embedded.tessera.safetensors; try it:"
echo "  cargo run --release -- draw \"an x-ray of an owl\" --model $PWD/embedded.tessera.safetensors"
