#!/usr/bin/env bash
# Caption COCO val2014 with Qwen2.5-VL and score the captions by CHAIR.
#
# Run it inside the activated environment, from any folder. Settings come from the environment:
#     USE_REVISIT=false OUTPUT_PATH=results/greedy bash Qwen2.5-VL/eval_chair_qwenvl.sh
# or from flags of eval/chair_eval_qwenvl.py (see --help), which count before the environment:
#     bash Qwen2.5-VL/eval_chair_qwenvl.sh --use_revisit false --output_path results/greedy
# A run that was cut short continues when the same command is given again.
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname -- "$here")"

# What is read and written. Empty OUTPUT_PATH: a folder named by decoding and seed, in results/qwen.
MODEL_PATH="${MODEL_PATH:-$root/prerequisites/Qwen2.5-VL-7B-Instruct}"
DATA_PATH="${DATA_PATH:-$root/prerequisites/coco/val2014}"
ANNO_PATH="${ANNO_PATH:-$root/prerequisites/coco/annotations}"
OUTPUT_PATH="${OUTPUT_PATH:-}"

# How it is decoded. EARLY_EXIT_LAYERS: last, all, low, high, or indices such as "0 10 20".
# DECODER, which counts before USE_REVISIT: greedy, revisit, or another that --help names.
USE_REVISIT="${USE_REVISIT:-true}"
DECODER="${DECODER:-}"
EARLY_EXIT_LAYERS="${EARLY_EXIT_LAYERS:-all}"
RELATIVE_TOP="${RELATIVE_TOP:-1e-5}"
REVISIT_DIVERGENCE="${REVISIT_DIVERGENCE:-ag}"
DO_SAMPLE="${DO_SAMPLE:-false}"
MAX_NEW_TOKENS="${MAX_NEW_TOKENS:-512}"

# Which images, and how many at once.
SEED="${SEED:-42}"
NUM_EVAL_SAMPLES="${NUM_EVAL_SAMPLES:-500}"
BATCH_SIZE="${BATCH_SIZE:-1}"

# The device (cpu, cuda, cuda:N, auto) and dtype (float32, float16, bfloat16, or auto: the
# checkpoint's own). Empty: the first GPU and auto, as published; without a GPU the CPU and float32.
DEVICE="${DEVICE:-}"
DTYPE="${DTYPE:-}"

# What starts the program: python, or "torchrun --nproc_per_node 2" for two GPUs.
LAUNCHER="${LAUNCHER:-python}"

# nltk is the published scoring and needs NLTK's data; noun needs none.
LEMMATIZER="${LEMMATIZER:-nltk}"

session=qwen
program="$here/eval/chair_eval_qwenvl.py"
source "$root/shared/eval_chair.sh"
