# Ask a benchmark's questions and score the answers: each family's eval_*.sh sources this.
#
# A setting is the flag of its name (NUM_EVAL_SAMPLES is --num_eval_samples; --help explains it).
# Set it in the environment, or in the family's script. Empty means the flag's own default.
case "$benchmark" in
    chair) settings="ANNO_PATH NUM_EVAL_SAMPLES LEMMATIZER" ;;
    pope) settings="POPE_PATH SPLITS ONE_WORD" ;;
esac
settings="MODEL_PATH DATA_PATH OUTPUT_PATH $settings"
# DECODER follows USE_REVISIT, so that it counts where both are set.
settings="$settings USE_REVISIT DECODER EARLY_EXIT_LAYERS RELATIVE_TOP REVISIT_DIVERGENCE"
settings="$settings DO_SAMPLE MAX_NEW_TOKENS SEED BATCH_SIZE DEVICE DTYPE"

# Where prerequisites/download_nltk.py puts NLTK's data; NLTK looks in other places too.
export NLTK_DATA="${NLTK_DATA:-$root/prerequisites/nltk_data}"

# What starts the program, such as "torchrun --nproc_per_node 2" for two GPUs.
launcher="${LAUNCHER:-python}"
if ! command -v "${launcher%% *}" > /dev/null; then
    echo "${launcher%% *} is not here: build this program's environment by \`nox -s $session" \
        "--install-only\`, and activate it by \`source $root/.nox/$session/bin/activate\`" >&2
    exit 1
fi

flags=()
for setting in $settings; do
    words=("${!setting:-}")
    if [ "$setting" = SPLITS ]; then
        # shellcheck disable=SC2206
        words=(${words//,/ })
    fi
    if [ -n "${words[0]:-}" ]; then
        flags+=("--$(tr '[:upper:]' '[:lower:]' <<< "$setting")" "${words[@]}")
    fi
done

# Of a flag given twice the last counts.
# shellcheck disable=SC2086
exec $launcher "$program" "${flags[@]}" "$@"
