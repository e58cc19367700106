#!/usr/bin/env bash
# Makes the runs of docs/precision.md. They measure the effect of 16-bit storage on a deep prior,
# and of a gradient scale for each resblock (paper §2.4, figure 4).
#
#   runs/precision.sh WORK
#
# WORK is the folder in which runs/emoji.sh has made `data`, `codes` and `bpe`. The runs take about
# an hour and a half on two cores. If the script is stopped, the same command continues.
set -euo pipefail
tessera=$(cd "$(dirname "$0")/.." && pwd)/target/release/tessera
[ -x "$tessera" ] || { echo "precision: no $tessera; cargo build --release first" >&2; exit 1; }
cd "${1:?usage: runs/precision.sh WORK}/"

# The prior has 64 attention and 64 MLP resblocks, like the paper's, and is 64 wide instead of
# 3,968. All runs are trained on the same pictures in the same order; only the number format
# differs.
deep=(--config emoji --data codes --bpe bpe/tokenizer.json
  --set prior.n_layers=64 --set prior.d_model=64 --set prior.n_heads=1 --set 'cpu.precision="f32"'
  --set train_prior.steps=800 --set train_prior.lr_steps=1600 --set train_prior.lr=6e-4
  --set train_prior.eval_every=800 --set train_prior.checkpoint_every=100 --set train_prior.log_every=10)
# run NAME …: trains in deep/NAME, or continues the run there; does nothing if it is finished.
run() {
  local name=$1 resume=() steps=
  shift
  [ -e "deep/$name/config.toml" ] && steps=$(sed -n '/^\[train_prior\]/,/^\[/s/^steps = //p' "deep/$name/config.toml")
  [ -d "deep/$name/checkpoints/$(printf 'step_%06d' "${steps:-0}")" ] && return
  if ls -d "deep/$name"/checkpoints/step_* >/dev/null 2>&1; then resume=(--resume); fi
  "$tessera" train prior --run "deep/$name" "${deep[@]}" "$@" ${resume[@]+"${resume[@]}"}
}
mkdir -p deep

# 1. The baseline in f32.
run f32

# 2. The paper's 16-bit format, with five bits of exponent, and the paper's rules for scales.
run f16-resblock --set 'train_prior.storage="f16"'
run f16-global   --set 'train_prior.storage="f16"' --set 'chain.scaling="global"'

# A second run in f32, to compare f32 with itself: with each batch in two halves, the arithmetic is
# the same, but sums are computed in another order.
run f32-halves --set train_prior.micro_batches=2

# Two more seeds, with shorter runs, to measure the variation between runs.
for seed in 1 2; do
  short=(--seed "$seed" --set train_prior.steps=600 --set train_prior.eval_every=600)
  run "f32-s$seed" "${short[@]}"
  run "f32-halves-s$seed" "${short[@]}" --set train_prior.micro_batches=2
  run "f16-resblock-s$seed" "${short[@]}" --set 'train_prior.storage="f16"'
done

# 3. A format with three bits of exponent. Scales start near the largest value that the first
#    gradients allow. They may fall every 5 updates, because gradients grow by 2^10 within the first
#    hundreds of updates; the paper's 125 updates would be too slow in such a short run.
three=(--set 'train_prior.storage="1-3-12"' --set chain.scale_first=22.0 --set chain.scale_rest=5)
run three-resblock "${three[@]}"
run three-global   "${three[@]}" --set 'chain.scaling="global"'

# 4. The relaxed and the sampled bound of a dVAE, while its temperature falls.
[ -e deep/dvae/dvae.tessera.safetensors ] || "$tessera" train dvae --config emoji --data data --run deep/dvae \
  --set train_dvae.steps=2600 --set train_dvae.lr_steps=5000 --set train_dvae.eval_every=100

# 5. The figures and the plots.
# beside RUN OTHER: prints by how many percent the loss of RUN is above that of OTHER, as means of
# 100 updates, and the last mean of both.
beside() {
  for run in "$1" "$2"; do
    sed -n 's/.*"loss":\([0-9.]*\),.*"split":"train","step":\([0-9]*\),.*/\2 \1/p' "deep/$run/metrics.jsonl"
    echo end
  done | awk -v names="$1 beside $2" '
    $1 == "end" { second = 1; next }
    { window = int(($1 - 1) / 100); sum[second + 0, window] += $2; n[second + 0, window]++; if (window > last) last = window }
    END {
      printf "%s:", names
      for (i = 0; i <= last; i++) {
        a = sum[0, i] / n[0, i]; b = sum[1, i] / n[1, i]
        printf " %+.2f", 100 * (a / b - 1)
      }
      printf " %%; %.4f and %.4f at the end\n", a, b
    }'
}
for pair in "f16-resblock f32" "f16-resblock-s1 f32-s1" "f16-resblock-s2 f32-s2" "f16-global f16-resblock" \
  "f32-halves f32" "f32-halves-s1 f32-s1" "f32-halves-s2 f32-s2" "three-resblock f32" "three-global f32"; do
  beside $pair
done
curves() { "$tessera" eval curves --out "$@"; }
curves precision-three.svg deep/f32 deep/three-resblock deep/three-global --metric loss
curves precision-f16.svg deep/f32 deep/f16-resblock deep/f16-global --metric loss
curves precision-scales.svg deep/three-resblock deep/three-global --metric scale_log2 --metric gradient_log2
curves relaxation.svg deep/dvae --metric relaxation_gap_nats_per_value --metric relaxed_elbo_nats_per_value \
  --metric sampled_elbo_nats_per_value --metric psnr_db

# 6. The memory that training needs by depth, with activations kept and recomputed.
"$tessera" bench depth-{8,16,32,64}-{keep,recompute} --rounds 3
