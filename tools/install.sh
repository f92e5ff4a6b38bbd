#!/usr/bin/env bash
# Makes a virtual environment and installs the kit into it, editable. Safe to call again:
# it returns at once when nothing it depends on has changed.
#
#   tools/install.sh [dev|lab]      VENV=.venv  PYTHON=python3.12  can be given in the environment
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:-dev}
venv=${VENV:-.venv}
cpu_index=https://download.pytorch.org/whl/cpu
export PIP_DISABLE_PIP_VERSION_CHECK=1
quiet=; [ -t 1 ] || quiet=--quiet  # progress bars are for people

say() { echo "install: $*"; }
die() { say "$*" >&2; exit 1; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# 1. A Python. An activated environment is not needed, and is not touched.
if ! new_enough "$venv/bin/python"; then
    if "$venv/bin/python" --version >/dev/null 2>&1; then
        die "$venv has $("$venv/bin/python" --version), the kit needs 3.11 or newer: remove it, or name another with VENV=..."
    elif [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
        die "$venv is there and is not a virtual environment: name another folder with VENV=..."
    fi
    for python in ${PYTHON:-python3.11 python3 python3.12 python3.13 python3.14}; do
        if new_enough "$python"; then break; fi
        python=
    done
    [ -n "$python" ] || die "no Python 3.11 or newer found${PYTHON:+ as '$PYTHON'}: name one with PYTHON=..."
    say "making $venv with $("$python" --version)"
    # --clear: what may stand there is an environment whose Python has gone
    "$python" -m venv --clear "$venv" || die "cannot make $venv; on Debian and Ubuntu install python3-venv, then remove $venv"
fi
python=$venv/bin/python

# 2. Done already? The stamp holds all that decides the result, the folder included
#    (an editable install points at it).
stamp=$venv/.sadm-$extra
key=$({ echo "$PWD"; "$python" --version; cat pyproject.toml constraints.txt tools/install.sh; } |
      "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then exit 0; fi
rm -f "$stamp"
start=$SECONDS

# 3. torch, on its own. On Linux the torch of PyPI brings gigabytes of CUDA libraries, so a
#    machine without an NVIDIA GPU takes PyTorch's CPU wheels if that index answers. A torch
#    of the right range that imports is kept, whichever it is.
if "$python" - 2>/dev/null <<'PY'
import sys, torch, torchvision
sys.exit(not (2, 6) <= tuple(int(v) for v in torch.__version__.split(".")[:2]) < (3, 0))
PY
then
    say "keeping the torch that is there"
else
    pins=$(grep -E '^(torch|torchvision)==' constraints.txt)
    from=
    if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
        # One short try; `timeout` because looking up a name has no time limit of its own.
        if timeout 8 "$python" -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5).read(1)' \
                "$cpu_index/torch/" 2>/dev/null; then
            # --no-deps: that index holds old copies of the other packages; step 4 takes those from PyPI.
            from="--index-url $cpu_index --no-deps"
            say "no NVIDIA GPU here: taking torch from $cpu_index"
        else
            say "no NVIDIA GPU here, but $cpu_index does not answer: taking PyPI's torch (with CUDA, about 3 GB to download)"
        fi
    fi
    # Unquoted: several words or none (macOS has a bash that fails on empty arrays).
    "$python" -m pip install $quiet $from -c constraints.txt $pins
fi

# 4. The rest, at the tested versions. The pins of torch are left out, so that a torch kept
#    in step 3 stays.
say "installing sadm[$extra] and what it needs"
grep -vE '^(torch|torchvision)==' constraints.txt > "$venv/constraints.txt"
"$python" -m pip install $quiet -c "$venv/constraints.txt" -e ".[$extra]"

echo "$key" > "$stamp"
say "done in $((SECONDS - start)) s: $("$python" -c 'import torch; print("torch", torch.__version__)')"
