#!/usr/bin/env bash
# Caption COCO val2014 with Qwen2.5-VL and score the captions by CHAIR.
#
# Run it inside the activated environment, from any folder. Settings come from the environment:
#     USE_REVISIT=false OUTPUT_PATH=results/greedy bash Qwen2.5-VL/eval_chair_qwenvl.sh
# or from flags of eval/chair_eval_qwenvl.py (see --help), which count before the environment:
#     bash Qwen2.5-VL/eval_chair_qwenvl.sh --use_revisit false --output_path results/greedy
# Without an output path the results go to a folder named by the settings, in results/qwen.
# A run that was cut short continues when the same command is given again.
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname -- "$here")"

# shared/eval.sh names the other settings.
MODEL_PATH="${MODEL_PATH:-$root/prerequisites/Qwen2.5-VL-7B-Instruct}"
DATA_PATH="${DATA_PATH:-$root/prerequisites/coco/val2014}"
ANNO_PATH="${ANNO_PATH:-$root/prerequisites/coco/annotations}"
USE_REVISIT="${USE_REVISIT:-true}"
EARLY_EXIT_LAYERS="${EARLY_EXIT_LAYERS:-all}"
# nltk is the published scoring and needs NLTK's data; noun needs none.
LEMMATIZER="${LEMMATIZER:-nltk}"

benchmark=chair session=qwen program="$here/eval/chair_eval_qwenvl.py"
source "$root/shared/eval.sh"
