#!/usr/bin/env bash
# Ask Qwen2.5-VL POPE's questions about COCO val2014 and score the answers.
#
# Run it inside the activated environment, from any folder. Settings come from the environment:
#     USE_REVISIT=false OUTPUT_PATH=results/pope-greedy bash Qwen2.5-VL/eval_pope_qwenvl.sh
# or from flags of eval/pope_eval_qwenvl.py (see --help), which count before the environment:
#     bash Qwen2.5-VL/eval_pope_qwenvl.sh --use_revisit false --output_path results/pope-greedy
# Without an output path the results go to a folder named by the settings, in results/qwen.
# A run that was cut short continues when the same command is given again.
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname -- "$here")"

# shared/eval.sh names the other settings.
MODEL_PATH="${MODEL_PATH:-$root/prerequisites/Qwen2.5-VL-7B-Instruct}"
DATA_PATH="${DATA_PATH:-$root/prerequisites/coco/val2014}"
POPE_PATH="${POPE_PATH:-$root/prerequisites/pope}"
USE_REVISIT="${USE_REVISIT:-true}"
EARLY_EXIT_LAYERS="${EARLY_EXIT_LAYERS:-all}"

benchmark=pope session=qwen program="$here/eval/pope_eval_qwenvl.py"
source "$root/shared/eval.sh"
