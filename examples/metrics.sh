#!/bin/sh
# Is the server ready, what does it serve, and how busy is it?
#   examples/metrics.sh [URL]      default: http://127.0.0.1:8000
set -eu
url=${1:-http://127.0.0.1:8000}

curl --fail-with-body --silent --show-error "$url/ready"
curl --fail-with-body --silent --show-error "$url/v1/models"
echo
curl --fail-with-body --silent --show-error "$url/metrics" |
  grep -E '^vllm:(num_requests_(running|waiting)|kv_cache_usage_perc|generation_tokens_total|num_preemptions_total)'
