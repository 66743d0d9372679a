#!/bin/sh
# A chat answer in one piece, then the same as a stream.
#   examples/chat.sh [URL]      default: http://127.0.0.1:8000
set -eu
url=${1:-http://127.0.0.1:8000}

curl --fail-with-body --silent --show-error "$url/v1/chat/completions" \
  --header 'Content-Type: application/json' \
  --data '{"messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 32, "temperature": 0}'
echo

curl --fail-with-body --silent --show-error --no-buffer "$url/v1/chat/completions" \
  --header 'Content-Type: application/json' \
  --data '{"messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 32, "temperature": 0,
           "stream": true, "stream_options": {"include_usage": true}}'
