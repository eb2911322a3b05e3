#!/usr/bin/env bash
# Ask LLaVA-1.5 POPE's questions about COCO val2014 and score the answers.
#
# Run it inside the activated environment, from any folder. Settings come from the environment:
#     USE_REVISIT=false OUTPUT_PATH=results/pope-greedy bash LLaVA1.5/eval_pope_llava.sh
# or from flags of eval/pope_eval_llava.py (see --help), which count before the environment:
#     bash LLaVA1.5/eval_pope_llava.sh --use_revisit false --output_path results/pope-greedy
# Without an output path the results go to a folder named by the settings, in results/llava.
# A run that was cut short continues when the same command is given again.
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname -- "$here")"

# shared/eval.sh names the other settings.
MODEL_PATH="${MODEL_PATH:-$root/prerequisites/llava-v1.5-7b}"
DATA_PATH="${DATA_PATH:-$root/prerequisites/coco/val2014}"
POPE_PATH="${POPE_PATH:-$root/prerequisites/pope}"
USE_REVISIT="${USE_REVISIT:-true}"
EARLY_EXIT_LAYERS="${EARLY_EXIT_LAYERS:-last}"

benchmark=pope session=llava program="$here/eval/pope_eval_llava.py"
source "$root/shared/eval.sh"
