#!/usr/bin/env bash
# Makes the embedded model from scratch: every command of the pipeline, in order.
#
#   runs/emoji.sh WORK        writes everything to WORK; after Ctrl-C, the same command continues
#
# Each command reads the output of earlier commands. crates/pretrained/CARD.md has the wall time and
# the figures of the run that made the embedded model; configs/emoji.toml has the settings and their
# reasons.
#
# It needs the same tools as runs/fetch_emoji.sh.
set -euo pipefail

[ $# -eq 1 ] || { echo "emoji: wanted one argument, the folder to work in: runs/emoji.sh WORK" >&2; exit 2; }
repo=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
cd "$1"

tessera() { cargo run --release --quiet --manifest-path "$repo/Cargo.toml" -- "$@"; }

# train TASK RUN …: trains in the folder RUN, or continues the run there. If the run is finished, it
# only writes the model again.
train() {
  local task=$1 run=$2 resume=
  shift 2
  if ls -d "$run"/checkpoints/step_* >/dev/null 2>&1; then resume=--resume; fi
  tessera train "$task" --config emoji --run "$run" "$@" ${resume:+"$resume"} ||
    { code=$?; [ $code -le 128 ] || echo "emoji: stopped; start runs/emoji.sh again to continue" >&2; exit $code; }
}

# 1. The pictures, as published by their makers: six sets of emoji as SVG. Names and keywords come
#    from emojibase.
"$repo/runs/fetch_emoji.sh" packages

# 2. Pictures and captions. 108 pixels on each side leave room for random crops larger than 48
#    pixels. Some combinations of thing and style are held out, to test later whether the model can
#    draw what is not in the training data. If the data set exists, the command says so and
#    succeeds.
tessera data emoji --packages packages --out data --size 108

# 3. The caption vocabulary (paper §2.2): byte-level BPE on the training captions. It takes seconds
#    and is always redone.
tessera train bpe --config emoji --data data --run bpe

# 4. Stage 1 (paper §2.1, §A): the dVAE learns to encode pictures of 48 pixels to tokens and to
#    decode them. Training then continues from those weights at the final temperature, first on
#    pictures of 32 pixels (this run made an earlier model), then on pictures of 48 pixels again.
#    RUN/samples shows originals above reconstructions.
harder=(--set train_dvae.steps=2000 --set train_dvae.lr_steps=2000 --set train_dvae.lr=5e-4 --set relax.tau_steps=1
  --set relax.beta_steps=1)
train dvae dvae-soft --data data
train dvae dvae-small --data data --init dvae-soft/dvae.tessera.safetensors "${harder[@]}" \
  --set dvae.image_size=32 --set prior.grid=8
train dvae dvae --data data --init dvae-small/dvae.tessera.safetensors "${harder[@]}"

# 5. Pictures are encoded to tokens (paper §B.2). The dVAE that decodes them is copied to the same
#    folder. It is written last, so if it exists, the codes are complete.
if [ ! -e codes/dvae.tessera.safetensors ]; then
  tessera encode --config emoji --data data --dvae dvae/dvae.tessera.safetensors --out codes
fi

# 6. Stage 2 (paper §2.2, §B): the transformer learns captions and tokens as one sequence. This is
#    the longest step. WORK/prior/samples shows drawings of held-out captions during training. When
#    the embedded model was made, this run had not converged. A second run therefore continues from
#    its weights, with a schedule that starts at a large learning rate again and ends before the decay
#    is complete.
train prior prior --data codes --bpe bpe/tokenizer.json
train prior longer --data codes --bpe bpe/tokenizer.json --init prior/model.tessera.safetensors \
  --set train_prior.lr=6e-4 --set train_prior.steps=18400 --set train_prior.lr_steps=21000

# 7. The contrastive model that ranks drawings (paper §2.6). Half of its training pictures are
#    reconstructed from the dVAE's tokens, because drawings are decoded from tokens too. A second
#    model, from another seed, never ranks, so it can evaluate the choice of the first one.
train rerank rerank --data data --bpe bpe/tokenizer.json --dvae dvae/dvae.tessera.safetensors --seed 1
train rerank judge --data data --bpe bpe/tokenizer.json --dvae dvae/dvae.tessera.safetensors --seed 2

# 8. Stores the matrices of the prior and of the contrastive model in 8 bits, so that the model is
#    small enough to embed. docs/releasing.md says how to embed it.
model=emoji.tessera.safetensors
tessera pack longer/model.tessera.safetensors --rerank rerank/rerank.tessera.safetensors --out "$model"

# 9. Evaluation on combinations that are not in the training data: how well pictures are
#    reconstructed from tokens, how much the caption matters, and how often a drawing is nearest to
#    the true picture.
tessera eval recon --data data --model "$model"
tessera eval conditioning --data data --model "$model"
tessera eval drawing --data data --model "$model" --sheet held-out.png
tessera eval retrieval --data data --rerank "$model"
tessera eval rerank-curve --data data --model "$model" --judge judge/rerank.tessera.safetensors --drawings drawings \
  --of 64 --out rerank-curve.svg

echo
echo "the model is $PWD/$model; try it:"
echo "  cargo run --release -- draw \"a red apple\" --model $PWD/$model"
