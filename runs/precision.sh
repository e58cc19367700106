#!/usr/bin/env bash
# What 16-bit numbers do to a deep prior, and what a gradient scale for each resblock does about it (paper §2.4, figure 4):
# the runs behind docs/precision.md.
#
#   runs/precision.sh WORK
#
# WORK is the folder in which runs/emoji.sh has made `codes` and `bpe`. About an hour and a half on two cores; where it is stopped, it
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

# Two more seeds, shorter, to see how far runs are apart that differ in nothing else.
for seed in 1 2; do
  short=(--seed "$seed" --set train_prior.steps=600 --set train_prior.eval_every=600)
  run "f32-s$seed" "${short[@]}"
  run "f16-resblock-s$seed" "${short[@]}" --set 'train_prior.storage="f16"'
done

# 3. Three bits of exponent. Scales begin near what the first gradients bear, and may fall every 5 updates: gradients grow by
#    2^10 within the first hundreds, for which the paper's 125 would be too slow in so short a run.
three=(--set 'train_prior.storage="1-3-12"' --set chain.scale_first=22.0 --set chain.scale_rest=5)
run three-resblock "${three[@]}"
run three-global   "${three[@]}" --set 'chain.scaling="global"'

# 4. The relaxed and the sampled bound of a dVAE while its temperature falls.
[ -e deep/dvae/dvae.tessera.safetensors ] || "$tessera" train dvae --config emoji --data data --run deep/dvae \
  --set train_dvae.steps=2600 --set train_dvae.eval_every=100

# 5. The plots.
curves() { "$tessera" eval curves --out "$@"; }
curves precision-three.svg deep/f32 deep/three-resblock deep/three-global --metric loss
curves precision-f16.svg deep/f32 deep/f16-resblock deep/f16-global --metric loss
curves precision-scales.svg deep/three-resblock deep/three-global --metric scale_log2 --metric gradient_log2
curves relaxation.svg deep/dvae --metric relaxation_gap_nats_per_value --metric relaxed_elbo_nats_per_value \
  --metric sampled_elbo_nats_per_value --metric psnr_db

# 6. What keeping activations takes, by depth.
"$tessera" bench depth-{8,16,32,64}-{keep,recompute} --rounds 3
