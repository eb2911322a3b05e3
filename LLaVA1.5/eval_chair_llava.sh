#!/usr/bin/env bash
# Caption COCO val2014 with LLaVA-1.5 and score the captions by CHAIR.
#
# Run it inside the activated environment, from any folder. Settings come from the environment:
#     USE_REVISIT=false OUTPUT_PATH=results/greedy bash LLaVA1.5/eval_chair_llava.sh
# What is given after the script's name goes to eval/chair_eval_llava.py (see --help). A run that was
# cut short continues when the same command is given again.
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname -- "$here")"
[[ "${1:-}" != --help ]] || exec python "$here/eval/chair_eval_llava.py" --help

# What is read.
MODEL_PATH="${MODEL_PATH:-$root/prerequisites/llava-v1.5-7b}"
DATA_PATH="${DATA_PATH:-$root/prerequisites/coco/val2014}"
ANNO_PATH="${ANNO_PATH:-$root/prerequisites/coco/annotations}"

# How it is decoded. EARLY_EXIT_LAYERS: last, all, low, high, or indices such as "0 10 20".
USE_REVISIT="${USE_REVISIT:-true}"
EARLY_EXIT_LAYERS="${EARLY_EXIT_LAYERS:-last}"
RELATIVE_TOP="${RELATIVE_TOP:-1e-5}"
REVISIT_DIVERGENCE="${REVISIT_DIVERGENCE:-ag}"
DO_SAMPLE="${DO_SAMPLE:-false}"
MAX_NEW_TOKENS="${MAX_NEW_TOKENS:-512}"

# Which images, and how many at once.
SEED="${SEED:-42}"
NUM_EVAL_SAMPLES="${NUM_EVAL_SAMPLES:-500}"
BATCH_SIZE="${BATCH_SIZE:-1}"

# The device (cpu, cuda, cuda:N, auto) and dtype; empty: float16 on a GPU, float32 on a CPU.
DEVICE="${DEVICE:-}"
DTYPE="${DTYPE:-}"

# nltk is the published scoring and needs NLTK's data; noun needs none.
LEMMATIZER="${LEMMATIZER:-nltk}"

# The folder of captions.jsonl and chair.json: one for each setting.
case "$USE_REVISIT" in
    [Tt]rue) decoder="revisit-${EARLY_EXIT_LAYERS//[ ,]/-}-$RELATIVE_TOP-$REVISIT_DIVERGENCE" ;;
    *) decoder=plain ;;
esac
OUTPUT_PATH="${OUTPUT_PATH:-$root/results/llava/$decoder-seed$SEED}"

# Scoring comes last: what it needs is looked for first.
python -c 'import sys; from revisit.evaluation.lemmas import LEMMATIZERS; LEMMATIZERS[sys.argv[1]]()' \
    "$LEMMATIZER"

python "$here/eval/chair_eval_llava.py" \
    --model_path "$MODEL_PATH" \
    --data_path "$DATA_PATH" \
    --anno_path "$ANNO_PATH" \
    --output_path "$OUTPUT_PATH" \
    --use_revisit "$USE_REVISIT" \
    --early_exit_layers "$EARLY_EXIT_LAYERS" \
    --relative_top "$RELATIVE_TOP" \
    --revisit_divergence "$REVISIT_DIVERGENCE" \
    --do_sample "$DO_SAMPLE" \
    --max_new_tokens "$MAX_NEW_TOKENS" \
    --seed "$SEED" \
    --num_eval_samples "$NUM_EVAL_SAMPLES" \
    --batch_size "$BATCH_SIZE" \
    ${DEVICE:+--device "$DEVICE"} \
    ${DTYPE:+--dtype "$DTYPE"} \
    "$@"

revisit-chair \
    --cap_file "$OUTPUT_PATH/captions.jsonl" \
    --coco_path "$ANNO_PATH" \
    --save_path "$OUTPUT_PATH/chair.json" \
    --lemmatizer "$LEMMATIZER"
