#!/usr/bin/env bash
# Writes the lock files that the images are installed from. Needs uv; `docker/lock.sh --upgrade` takes newer versions.
#
# torch is of the version that the Makefile names. PyTorch keeps its builds for CPUs in an index of their own, which the
# Dockerfile takes as an argument: worker-cpu.lock has what worker.lock has but torch and what only GPUs need.
set -euo pipefail
cd "$(dirname "$0")"
torch=$(sed -n 's/^TORCH ?= //p' ../Makefile)

lock() {
	local name=$1
	shift
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links --no-emit-package pagewire --constraints <(echo "$torch") \
		--output-file "$name.lock" "$@"
}

project=(../pyproject.toml --extra container --extra tracing)
lock build build.in "$@"
lock gateway "${project[@]}" --extra gateway --extra vllm-protocol "$@"
lock scheduler "${project[@]}" --extra scheduler "$@"
lock worker "${project[@]}" --extra worker "$@"
left_out=()
for name in $(grep -oE '^(torch|triton|cuda|nvidia)[a-z0-9-]*' worker.lock); do
	left_out+=(--no-emit-package "$name")
done
lock worker-cpu "${project[@]}" --extra worker "${left_out[@]}" "$@"
