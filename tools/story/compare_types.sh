#!/usr/bin/env bash
# Logits and perplexity of the story model in every block type, quantised by kiln and by llama-quantize.
#
#     tools/story/compare_types.sh KILN LLAMA_QUANTIZE STORY_F32.gguf TOKENS.u32 LOGITS.f32
#
# Tokens and logits are those of `reference.py logits`.
set -euo pipefail
kiln=$1 llama=$2 model=$3 tokens=$4 logits=$5
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

measure() {
    text=$("$kiln" perplexity -m "$1" --file "$(dirname "$0")/../data/story_eval.txt" --device cpu 2>/dev/null)
    against=$("$kiln" perplexity -m "$1" --tokens "$tokens" --reference "$logits" --exact --kv-type f32 --device cpu 2>/dev/null)
    echo "$(awk '/^ *perplexity/ { print $2; exit }' <<<"$text") $(awk '/^ *NMSE/ { print $4 }' <<<"$against")"
}

echo "type bytes | kiln: perplexity NMSE | llama-quantize: perplexity NMSE"
echo "f32 - | $(measure "$model")"
for type in q8_0 q6_k q5_k q5_1 q5_0 q4_k q4_1 q4_0 iq4_nl iq4_xs q3_k q2_k; do
    "$kiln" quantize "$model" "$folder/kiln.gguf" "$type" --pure 2>/dev/null
    case $type in q5_k | q4_k | q3_k) name=${type}_m ;; *) name=$type ;; esac
    "$llama" --pure "$model" "$folder/llama.gguf" "${name^^}" >/dev/null 2>&1
    echo "$type $(stat -c %s "$folder/kiln.gguf") | $(measure "$folder/kiln.gguf") | $(measure "$folder/llama.gguf")"
done
