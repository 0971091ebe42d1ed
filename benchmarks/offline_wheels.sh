#!/usr/bin/env bash
# Collects the wheels that Pagewire needs, its own included, for a host that reaches no package registry:
#
#   benchmarks/offline_wheels.sh PYTHON_VERSION FOLDER [--with-torch] [--arch aarch64]
#
# and there, in an environment that has PyTorch already (or with --with-torch):
#
#   python -m pip install --no-index --find-links FOLDER 'pagewire[all]'
#
# PyTorch, Triton and NVIDIA's libraries are several GB, so they are left out unless they are asked for.
set -euo pipefail
usage() {
	echo "usage: benchmarks/offline_wheels.sh PYTHON_VERSION FOLDER [--with-torch] [--arch ARCH]" >&2
	exit 2
}

[[ $# -ge 2 && $1 =~ ^3\.[0-9]+$ && $2 != -* ]] || usage
python_version=$1 folder=$(realpath -m "$2") arch=x86_64 with_torch=
shift 2
while [[ $# -gt 0 ]]; do
	case $1 in
	--with-torch) with_torch=1 && shift ;;
	--arch) [[ $# -ge 2 ]] || usage && arch=$2 && shift 2 ;;
	*) usage ;;
	esac
done

cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[[ -x $python ]] || python=python3

# What every process of a service needs, without the project itself and, unless it is wanted, torch.
requirements=$("$python" - "$with_torch" <<'EOF'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
names = project["dependencies"] + [name for extra in ("gateway", "scheduler", "vllm-protocol", "worker", "supervisor") for name in extras[extra]]
left_out = ("pagewire",) if sys.argv[1] else ("pagewire", "torch")
print(*(name for name in names if not name.startswith(left_out)), sep="\n")
EOF
)

platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_26 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_12 \
	manylinux2010 manylinux_2_5 manylinux1 linux; do
	platforms+=(--platform "${tag}_$arch")
done

mkdir -p "$folder"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" .
"$python" -m pip download --quiet --dest "$folder" --only-binary :all: --implementation cp \
	--python-version "$python_version" "${platforms[@]}" --requirement <(echo "$requirements")
echo "$(find "$folder" -name '*.whl' | wc -l) wheels, $(du -sh "$folder" | cut -f1), in $folder"
