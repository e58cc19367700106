#!/usr/bin/env bash
# What 16-bit numbers do to a deep prior, and what a gradient scale for each resblock does about it (paper §2.4, figure 4):
# the runs behind docs/precision.md.
#
#   runs/precision.sh WORK
#
# WORK is the folder in which runs/emoji.sh has made `data`, `codes` and `bpe`. About an hour and a half on two cores; where
# it is stopped, it goes on when called again.
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
# run NAME …: trains in deep/NAME, or continues what is there, or finds it done.
run() {
  local name=$1 resume=() steps=
  shift
  [ -e "deep/$name/config.toml" ] && steps=$(sed -n '/^\[train_prior\]/,/^\[/s/^steps = //p' "deep/$name/config.toml")
  [ -d "deep/$name/checkpoints/$(printf 'step_%06d' "${steps:-0}")" ] && return
  if ls -d "deep/$name"/checkpoints/step_* >/dev/null 2>&1; then resume=(--resume); fi
  "$tessera" train prior --run "deep/$name" "${deep[@]}" "$@" ${resume[@]+"${resume[@]}"}
}
mkdir -p deep

# 1. The measure.
run f32

# 2. The paper's 16 bits, five of them exponent, by its own rules for scales.
run f16-resblock --set 'train_prior.storage="f16"'
run f16-global   --set 'train_prior.storage="f16"' --set 'chain.scaling="global"'

# f32 against itself: a batch in two halves is the same arithmetic, added up in another order.
run f32-halves --set train_prior.micro_batches=2

# Two more seeds, shorter, to see how far runs are apart that differ in nothing else.
for seed in 1 2; do
  short=(--seed "$seed" --set train_prior.steps=600 --set train_prior.eval_every=600)
  run "f32-s$seed" "${short[@]}"
  run "f32-halves-s$seed" "${short[@]}" --set train_prior.micro_batches=2
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

# 5. The figures and the plots.
# Loss of run $1 beside run $2: how much it is above, in percent, by means of 100 updates, and both means at the end.
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

# 6. What keeping activations takes, by depth.
"$tessera" bench depth-{8,16,32,64}-{keep,recompute} --rounds 3
