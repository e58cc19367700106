#!/usr/bin/env bash
# The embedded model, from nothing: every command of the pipeline in its order.
#
#   runs/emoji.sh WORK        everything goes to WORK; stop it with Ctrl-C and start it again, it continues
#
# Each command reads what the ones before it wrote. Time and figures of the run that made the embedded model are in
# crates/pretrained/CARD.md; the settings and their reasons are in configs/emoji.toml.
#
# Needs what runs/fetch_emoji.sh needs.
set -euo pipefail

[ $# -eq 1 ] || { echo "emoji: wanted one argument, the folder to work in: runs/emoji.sh WORK" >&2; exit 2; }
repo=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
cd "$1"

tessera() { cargo run --release --quiet --manifest-path "$repo/Cargo.toml" -- "$@"; }

# train TASK RUN …: trains in the folder RUN, or continues what is there; a finished run only has its model written again.
train() {
  local task=$1 run=$2 resume=
  shift 2
  if ls -d "$run"/checkpoints/step_* >/dev/null 2>&1; then resume=--resume; fi
  tessera train "$task" --config emoji --run "$run" "$@" ${resume:+"$resume"}
  # Ctrl-C saves and is no error, but what follows wants the whole run, whose last checkpoint is that of its last step.
  local steps
  steps=$(sed -n "/^\[train_$task\]/,/^\[/s/^steps = //p" "$run/config.toml")
  [ -d "$run/checkpoints/$(printf 'step_%06d' "$steps")" ] ||
    { echo "emoji: stopped; start runs/emoji.sh again to continue" >&2; exit 130; }
}

# 1. The pictures as their makers publish them: six sets of emoji as SVG, names and keywords in emojibase.
"$repo/runs/fetch_emoji.sh" packages

# 2. Pictures and captions. 108 pixels a side leave room for random crops above 48. Some combinations of thing and style are
#    held out, to see later whether the model can draw what it was never shown. Already made: says so and goes on.
tessera data emoji --packages packages --out data --size 108

# 3. The caption vocabulary (paper §2.2): byte-level BPE on the training captions. Seconds, so it is simply made again.
tessera train bpe --config emoji --data data --run bpe

# 4. Stage 1 (paper §2.1, §A): the dVAE learns to turn a picture into tokens and back, on pictures of 48 pixels; then it goes
#    on from those weights with codes as hard as they get, on smaller pictures and on whole ones again (the first of these
#    made an earlier model). RUN/samples shows originals above reconstructions.
harder=(--set train_dvae.steps=2000 --set train_dvae.lr_steps=2000 --set train_dvae.lr=5e-4 --set relax.tau_steps=1
  --set relax.beta_steps=1)
train dvae dvae-soft --data data
train dvae dvae-small --data data --init dvae-soft/dvae.tessera.safetensors "${harder[@]}" \
  --set dvae.image_size=32 --set prior.grid=8
train dvae dvae --data data --init dvae-small/dvae.tessera.safetensors "${harder[@]}"

# 5. Pictures to tokens (paper §B.2). The folder also gets the dVAE that gives them their meaning; it is written last, so
#    where it is, the codes are whole.
if [ ! -e codes/dvae.tessera.safetensors ]; then
  tessera encode --config emoji --data data --dvae dvae/dvae.tessera.safetensors --out codes
fi

# 6. Stage 2 (paper §2.2, §B): the transformer learns captions and tokens as one stream. This is the long one.
#    WORK/prior/samples shows drawings of held-out captions as it goes. It had not learnt all there was to learn, so it goes
#    on from those weights, with the larger steps of a schedule that is left before its end.
train prior prior --data codes --bpe bpe/tokenizer.json
train prior longer --data codes --bpe bpe/tokenizer.json --init prior/model.tessera.safetensors \
  --set train_prior.lr=6e-4 --set train_prior.steps=18400 --set train_prior.lr_steps=21000

# 7. The contrastive model that ranks what is drawn (paper §2.6), on pictures of which half come out of the dVAE's tokens, as drawings do.
#    And another from another seed: it never ranks, so it can judge what the first one chose.
train rerank rerank --data data --bpe bpe/tokenizer.json --dvae dvae/dvae.tessera.safetensors --seed 1
train rerank judge --data data --bpe bpe/tokenizer.json --dvae dvae/dvae.tessera.safetensors --seed 2

# 8. Small enough to live inside the program: the matrices of the prior and of the contrastive model in 8 bits.
model=emoji.tessera.safetensors
tessera pack longer/model.tessera.safetensors --rerank rerank/rerank.tessera.safetensors --out "$model"

# 9. How good is it, on combinations it has not seen? What the tokens keep of a picture, what the words add, and how often a
#    drawing is nearest to the picture it should be.
tessera eval recon --data data --model "$model"
tessera eval conditioning --data data --model "$model"
tessera eval drawing --data data --model "$model" --sheet held-out.png
tessera eval retrieval --data data --rerank "$model"
tessera eval rerank-curve --data data --model "$model" --judge judge/rerank.tessera.safetensors --drawings drawings \
  --of 64 --out rerank-curve.svg

echo
echo "the model is $PWD/$model; try it:"
echo "  cargo run --release -- draw \"a red apple\" --model $PWD/$model"
