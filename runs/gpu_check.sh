#!/usr/bin/env bash
# Checks and measures a GPU: what the adapter can do, whether it computes the same as the processor,
# and how fast it is. No measurement begins after eight minutes.
#
#   runs/gpu_check.sh OUT           writes OUT/gpu_check.json, with everything that it prints
#   runs/gpu_check.sh OUT gpu:1     checks that adapter
#   QUICK=1 runs/gpu_check.sh OUT   leaves out all benchmarks but the smallest
#
# It needs no network and no Rust, only the program, which it looks for in TESSERA, beside the
# repository in target/release, or on the PATH, and a driver (docs/devices.md). If Python can import
# PyTorch with CUDA, it also measures PyTorch at the same work (benches/peers).
set -Eeuo pipefail

[ $# -ge 1 ] || { echo "gpu_check: wanted a folder for the results: runs/gpu_check.sh OUT [gpu:N]" >&2; exit 2; }
repo=$(cd "$(dirname "$0")/.." && pwd)
device=${2:-gpu}
program=${TESSERA:-$repo/target/release/tessera}
[ -x "$program" ] || program=$(command -v tessera) ||
  { echo "gpu_check: no program; set TESSERA, or cargo build --release --features vulkan" >&2; exit 1; }
program=$(realpath "$program")
mkdir -p "$1"
out=$(realpath "$1")
# Everything but the results is in a folder of its own.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
log=$out/log.txt
: >"$log"
trap 'echo "gpu_check: a command failed; the end of $log:" >&2; tail -n 3 "$log" >&2' ERR
# The flags below are all that counts.
unset TESSERA_DEVICE TESSERA_MODEL TESSERA_RERANK TESSERA_CONFIG
results=()
failed=0
# No benchmark begins later than this.
readonly DEADLINE=$((SECONDS + 400))

# record KEY JSON: adds an entry to the results.
record() { results+=("\"$1\": $2"); }

# on DEVICE …: runs the program quietly. What it reports is in log.txt.
on() { "$program" --quiet "${@:2}" --device "$1" 2>>"$log"; }

echo "== the adapter"
"$program" inspect --devices
record devices "$("$program" inspect --devices --json)"
# Products of 16 bits use the card's matrix units.
precision=auto
if "$program" inspect --devices | grep -q f16; then precision=f16; fi
on "$device" draw "a cat" -n 1 --out device.png >/dev/null # fails if there is no such device

# Thirty pictures, drawn by the embedded model, and their codes: data for a training.
echo "== equality with the processor"
mkdir pictures
for prompt in "a red apple" "a cat" "a house"; do
  "$program" --quiet draw "$prompt" -n 10 --seed 1 --separate --out "pictures/${prompt// /-}.png" >>"$log" 2>&1
  for picture in pictures/"${prompt// /-}"-*.png; do echo "$prompt" >"${picture%.png}.txt"; done
done
"$program" --quiet data folder pictures --out data --size 48 --holdout 5 >/dev/null 2>>"$log"
"$program" --quiet encode --data data --dvae embedded --out codes >/dev/null 2>>"$log"

# losses RUN: the loss of every update of a run.
losses() { grep '"split":"train"' "$1/metrics.jsonl" | sed 's/.*"loss":\([-0-9.e]*\),.*/\1/'; }

# train RUN DEVICE: 50 updates of the embedded prior in f32, on four pictures each.
train() {
  on "$2" train prior --config emoji --data codes --bpe embedded --init embedded --run "$1" --steps 50 \
    --set train_prior.batch=4 --set train_prior.micro_batches=1 --set train_prior.log_every=1 \
    --set train_prior.eval_every=50 --set train_prior.checkpoint_every=50 \
    --set 'cpu.precision="f32"' --set 'device.dtype="f32"' >/dev/null
}
train run-cpu cpu
train run-device "$device"
difference=$(paste <(losses run-cpu) <(losses run-device) |
  awk '{ d = $1 - $2; if (d < 0) d = -d; if (d > most) most = d; n++ } END { if (n != 50 || NF != 2) print "nan"; else print most + 0 }')
echo "the losses of 50 updates differ by at most $difference (wanted: less than 0.001)"
record loss_difference "\"$difference\""
awk -v d="$difference" 'BEGIN { exit !(d != "nan" && d < 1e-3) }' || failed=1

# tokens DEVICE: the tokens of a drawing of the most probable tokens in f32.
tokens() {
  on "$1" draw "a red apple" -n 2 --temperature 0 --weights f32 --seed 1 --out drawing.png --json |
    tr -d ' \n' | grep -o '"tokens":\[[^]]*\]'
}
expected=$(tokens cpu)
if [ -n "$expected" ] && [ "$expected" = "$(tokens "$device")" ]; then same=true; else same=false failed=1; fi
echo "the tokens of a drawing are the same: $same"
record same_tokens "$same"

# bench BENCHMARK: measures it, for at most a minute.
bench() {
  local line left=$((DEADLINE - SECONDS))
  if [ "$left" -gt 0 ] && line=$(timeout $((left < 60 ? left : 60)) "$program" bench "$1" --device "$device" --precision "$precision" --rounds 5 --json 2>>"$log"); then
    echo "$line" | sed 's/[{}"]//g; s/,/  /g'
  else
    line="null"
    echo "benchmark:$1  did not run in time; log.txt may say why"
  fi
  record "$1" "$line"
}
echo "== speed"
if [ -n "${QUICK:-}" ]; then
  bench gpt-step
else
  for benchmark in gpt-step paper-step paper-layers dvae-step released-dvae decode-1 decode-16 decode-64; do
    bench "$benchmark"
  done
fi

# peer BENCHMARK: measures PyTorch at the same work: the median of five repetitions after one.
peer() {
  local lines left=$((DEADLINE + 60 - SECONDS))
  [ "$left" -gt 0 ] || { echo "PyTorch $1: no time left"; record "pytorch_$1" null; return; }
  lines=$(printf 'go\n%.0s' 1 2 3 4 5 | timeout $((left < 40 ? left : 40)) python3 "$repo/benches/peers/worker.py" torch "$1" bf16 cuda 2>>"$log") || lines=""
  local rates
  rates=$(echo "$lines" | sed -n '2,$s/.*"rate": \([-0-9.e+]*\).*/\1/p' | sort -g)
  local median
  median=$(echo "$rates" | sed -n 3p)
  echo "PyTorch $1: ${median:-did not run}"
  record "pytorch_$1" "${median:-null}"
}
if [ -z "${QUICK:-}" ] && python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  echo "== PyTorch $(python3 -c 'import torch; print(torch.__version__)')"
  for benchmark in gpt-step paper-step dvae-step; do peer "$benchmark"; done
else
  echo "== PyTorch: not measured"
fi

(IFS=,; echo "{${results[*]}}") >"$out/gpu_check.json"
echo "== $out/gpu_check.json"
exit "$failed"
