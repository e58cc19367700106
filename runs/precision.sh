#!/usr/bin/env bash
# What 16-bit numbers do to a deep prior, and what a gradient scale for each resblock does about it (paper §2.4, figure 4):
# the runs behind docs/precision.md.
#
#   runs/precision.sh WORK
#
# WORK is the folder in which runs/emoji.sh has made `codes` and `bpe`. About an hour on two cores; where it is stopped, it
# goes on when called again.
set -euo pipefail
tessera=$(cd "$(dirname "$0")/.." && pwd)/target/release/tessera
[ -x "$tessera" ] || { echo "precision: no $tessera; cargo build --release first" >&2; exit 1; }
cd "${1:?usage: runs/precision.sh WORK}/"

# 64 attention and 64 MLP resblocks, as deep as the paper's prior, and 64 wide instead of 3,968. All runs see the same pictures
# in the same order; nothing but the numbers differs.
deep=(--config emoji --data codes --bpe bpe/tokenizer.json
  --set prior.n_layers=64 --set prior.d_model=64 --set prior.n_heads=1 --set 'cpu.precision="f32"'
  --set train_prior.steps=800 --set train_prior.lr_steps=1600 --set train_prior.lr=6e-4
  --set train_prior.eval_every=800 --set train_prior.checkpoint_every=100 --set train_prior.log_every=10)
run() {
  name=$1; shift
  [ -e "deep/$name/model.tessera.safetensors" ] && return
  resume=(); [ -d "deep/$name/checkpoints" ] && [ -n "$(ls "deep/$name/checkpoints")" ] && resume=(--resume)
  "$tessera" train prior --run "deep/$name" "${deep[@]}" "$@" "${resume[@]}"
}
mkdir -p deep

# 1. The measure.
run f32

# 2. The paper's 16 bits, five of them exponent, by its own rules for scales.
run f16-resblock --set 'train_prior.storage="f16"'
run f16-global   --set 'train_prior.storage="f16"' --set 'chain.scaling="global"'

# 3. Three bits of exponent. Scales begin near what the first gradients bear, and may fall every 5 updates: gradients grow by
#    2^10 within the first hundreds, for which the paper's 125 would be too slow in so short a run.
three=(--set 'train_prior.storage="1-3-12"' --set chain.scale_first=22.0 --set chain.scale_rest=5)
run three-resblock "${three[@]}"
run three-global   "${three[@]}" --set 'chain.scaling="global"'

# 4. The plots.
curves() { out=$1; shift; "$tessera" eval curves "$@" --out "$out"; }
curves precision-three.svg deep/f32 deep/three-resblock deep/three-global --metric loss --metric image_nats_per_token
curves precision-f16.svg deep/f32 deep/f16-resblock deep/f16-global --metric loss --metric image_nats_per_token
curves precision-scales.svg deep/three-resblock deep/three-global --metric scale_log2 --metric gradient_log2
