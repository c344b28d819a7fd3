#!/bin/sh
# Create the Python environment of an image: install.sh PYTHON FOLDER REQUIREMENTS SOURCE
#
#   PYTHON        the interpreter, 3.12
#   FOLDER        the folder of the environment
#   REQUIREMENTS  a complete file with hashes: apart from mlcls itself, nothing else is installed
#   SOURCE        a checkout
#
# What only the build needs (pip, hatchling) is not in the result.
set -eu
[ $# -eq 4 ] || { echo "install.sh: expected PYTHON FOLDER REQUIREMENTS SOURCE, got $# arguments" >&2; exit 2; }
python=$1 folder=$2 requirements=$3 source=$4
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/tools"
"$work/tools/bin/python" -m pip install --quiet --no-cache-dir --no-deps --require-hashes --only-binary :all: \
    -r "$source/requirements/wheel.txt"
"$work/tools/bin/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/wheel" "$source"

# The tools' pip installs into the other environment, which has none of its own.
"$python" -m venv --without-pip "$folder"
install() {
    "$work/tools/bin/python" -m pip --python "$folder/bin/python" install --quiet --no-cache-dir --no-deps "$@"
}
install --require-hashes --only-binary :all: -r "$requirements"
install --no-index "$work"/wheel/mlcls-*.whl
