#!/usr/bin/env bash
# Makes the embedded model of scenes from scratch: every command of the pipeline, in order.
#
#   runs/embedded.sh WORK            writes everything to WORK; after Ctrl-C, the same command
#                                    continues
#   runs/embedded.sh WORK gpu        trains on a GPU (docs/devices.md); TESSERA must name a program
#                                    that was built with GPU support
#
# Each command reads the output of earlier commands. The settings are those of
# configs/embedded.toml. If TESSERA names a program, the script uses it instead of the one that
# cargo builds. A rebuild then does not change a run.
#
# It needs the same tools as runs/fetch_emoji.sh.
set -euo pipefail

[ $# -eq 1 ] || [ $# -eq 2 ] ||
  { echo "embedded: wanted a folder to work in, and optionally a device: runs/embedded.sh WORK [gpu]" >&2; exit 2; }
device=${2:-cpu}
repo=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
cd "$1"

tessera() {
  if [ -n "${TESSERA:-}" ]; then "$TESSERA" "$@"; else
    cargo run --release --quiet --manifest-path "$repo/Cargo.toml" -- "$@"
  fi
}

# train TASK RUN …: trains in the folder RUN, or continues the run there. If the run is finished, it
# only writes the model again.
train() {
  local task=$1 run=$2 resume=
  shift 2
  if ls -d "$run"/checkpoints/step_* >/dev/null 2>&1; then resume=--resume; fi
  tessera train "$task" --config embedded --run "$run" --device "$device" "$@" ${resume:+"$resume"} ||
    { code=$?; [ $code -le 128 ] || echo "embedded: stopped; start runs/embedded.sh again to continue" >&2; exit $code; }
}

# 1. The emoji sets, as published by their makers.
"$repo/runs/fetch_emoji.sh" packages

# 2. Scenes of 128 pixels. The validation split shows each held-out combination twice.
tessera data scenes --packages packages --out scenes --size 128 --count 16000 --val 640

# 3. The caption vocabulary (paper §2.2), of English and Chinese captions.
tessera train bpe --config embedded --data scenes --run bpe

# 4. Stage 1 (paper §2.1, §A): the dVAE.
train dvae dvae --data scenes

# 5. Stage 2 (paper §2.2, §B): the transformer. Its scenes are composed and encoded when they are
#    read, so every epoch has new ones.
fresh=(--set 'data.scenes={ packages = "packages", size = 128, seed = 1 }')
train prior prior --data scenes --bpe bpe/tokenizer.json --dvae dvae/dvae.tessera.safetensors "${fresh[@]}"

# 6. The contrastive model that ranks drawings (paper §2.6), and one from another seed that
#    evaluates the choice of the first one.
train rerank rerank --data scenes --bpe bpe/tokenizer.json --dvae dvae/dvae.tessera.safetensors --seed 1 "${fresh[@]}"
train rerank judge --data scenes --bpe bpe/tokenizer.json --dvae dvae/dvae.tessera.safetensors --seed 2 "${fresh[@]}"

# 7. Stores the matrices of the prior and of the contrastive model in 8 bits, so that the model is
#    small enough to embed.
tessera pack prior/model.tessera.safetensors --rerank rerank/rerank.tessera.safetensors --out embedded.tessera.safetensors

# 8. Evaluation on combinations that are not in the training data: the figures of the model's card.
tessera eval zero-shot --model embedded.tessera.safetensors --judge judge/rerank.tessera.safetensors --packages packages \
  --sheet zero-shot.png --json > zero-shot.json
echo "the model is $PWD/embedded.tessera.safetensors; try it:"
echo "  cargo run --release -- draw \"an x-ray of an owl\" --model $PWD/embedded.tessera.safetensors"
