#!/bin/sh
# Which GPUs this machine has, in the words Spark asks for: {"name": "gpu", "addresses": ["0", "1"]}.
# For spark.worker.resource.gpu.discoveryScript and spark.executor.resource.gpu.discoveryScript. Where CUDA_VISIBLE_DEVICES is set,
# only the devices it names. A machine without GPUs has an empty list; one whose driver fails says so and is no worker.
set -eu
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  found=$(echo "$CUDA_VISIBLE_DEVICES" | tr ',' '\n')
elif command -v nvidia-smi >/dev/null 2>&1; then
  found=$(nvidia-smi --query-gpu=index --format=csv,noheader)
else
  found=""
fi
printf '%s\n' "$found" | awk '
  { gsub(/[ \t\r]/, "") }
  $0 != "" { list = list (list == "" ? "" : ", ") "\"" $0 "\"" }
  END { printf "{\"name\": \"gpu\", \"addresses\": [%s]}\n", list }'
