#!/usr/bin/env bash
# Ask Qwen2.5-VL POPE's questions about COCO val2014 and score the answers.
#
# Run it inside the activated environment, from any folder. Settings come from the environment:
#     USE_REVISIT=false OUTPUT_PATH=results/pope-greedy bash Qwen2.5-VL/eval_pope_qwenvl.sh
# or from flags of eval/pope_eval_qwenvl.py (see --help), which count before the environment:
#     bash Qwen2.5-VL/eval_pope_qwenvl.sh --use_revisit false --output_path results/pope-greedy
# A run that was cut short continues when the same command is given again.
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname -- "$here")"

# What is read and written. OUTPUT_PATH gets a folder for each split; empty: one named by decoding
# and seed, in results/qwen.
MODEL_PATH="${MODEL_PATH:-$root/prerequisites/Qwen2.5-VL-7B-Instruct}"
DATA_PATH="${DATA_PATH:-$root/prerequisites/coco/val2014}"
POPE_PATH="${POPE_PATH:-$root/prerequisites/pope}"
OUTPUT_PATH="${OUTPUT_PATH:-}"

# How it is decoded. EARLY_EXIT_LAYERS: last, all, low, high, or indices such as "0 10 20".
# DECODER, which counts before USE_REVISIT: greedy, revisit, or another that --help names.
USE_REVISIT="${USE_REVISIT:-true}"
DECODER="${DECODER:-}"
EARLY_EXIT_LAYERS="${EARLY_EXIT_LAYERS:-all}"
RELATIVE_TOP="${RELATIVE_TOP:-1e-5}"
REVISIT_DIVERGENCE="${REVISIT_DIVERGENCE:-ag}"
DO_SAMPLE="${DO_SAMPLE:-false}"
MAX_NEW_TOKENS="${MAX_NEW_TOKENS:-64}"

# Which questions (random, popular, adversarial), and how many at once. ONE_WORD: behind each stands
# "Please answer this question with one word.", as in the published code of VCD.
SPLITS="${SPLITS:-random popular adversarial}"
ONE_WORD="${ONE_WORD:-false}"
SEED="${SEED:-42}"
BATCH_SIZE="${BATCH_SIZE:-1}"

# The device (cpu, cuda, cuda:N, auto) and dtype (float32, float16, bfloat16, or auto: the
# checkpoint's own). Empty: the first GPU and auto, as published; without a GPU the CPU and float32.
DEVICE="${DEVICE:-}"
DTYPE="${DTYPE:-}"

# What starts the program: python, or "torchrun --nproc_per_node 2" for two GPUs.
LAUNCHER="${LAUNCHER:-python}"

session=qwen
program="$here/eval/pope_eval_qwenvl.py"
source "$root/shared/eval_pope.sh"
