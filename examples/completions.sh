#!/bin/sh
# Completions: two prompts at once, a prompt as token ids, and the score of a given text.
#   examples/completions.sh [URL]      default: http://127.0.0.1:8000
set -eu
url=${1:-http://127.0.0.1:8000}

post() {
  curl --fail-with-body --silent --show-error "$url$1" --header 'Content-Type: application/json' --data "$2"
  echo
}

post /v1/completions '{"prompt": ["Once upon a time", "The sky is"], "max_tokens": 8, "temperature": 0}'

ids=$(post /tokenize '{"prompt": "Once upon a time"}' | sed 's/.*"tokens":\(\[[^]]*\]\).*/\1/')
post /v1/completions "{\"prompt\": $ids, \"max_tokens\": 8, \"temperature\": 0}"

# Nothing is generated: one log probability for each token but the first.
post /v1/completions '{"prompt": "Paris is the capital of France", "max_tokens": 0, "echo": true, "logprobs": 1}'
