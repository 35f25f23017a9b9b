#!/usr/bin/env bash
# Makes the tests' environment and runs all tests; arguments go to pytest, e.g. -k resume.
set -eu
cd "$(dirname "$0")/.."
for python in "${PYTHON:-}" python3.11 python3.12 python3.13 python3.14 python3; do
  if [ -n "$python" ] && command -v "$python" >/dev/null 2>&1 &&
     "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
    break
  fi
  python=""
done
[ -n "$python" ] || { echo "The tests need Python 3.11 to 3.14."; exit 1; }
"$python" lycogui/install.py --only-install --env .venv-tests --also tests/requirements.txt

# What tests/interop holds ours against, in a folder of its own: one of the packages is called lycoris
# too. Where they cannot be installed those tests skip and say so.
peers=.venv-peers
if [ ! -d "$peers/lycoris_lora-4.1.3.dist-info" ] || [ ! -d "$peers/peft" ]; then
  .venv-tests/bin/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target "$peers" \
    lycoris-lora==4.1.3 "peft>=0.21,<1" "einops>=0.8,<1" "toml>=0.10,<1" ||
    echo "lycoris-lora and PEFT could not be installed; the interop tests will be skipped"
fi

# The browser tests drive Debian's chromium; where it cannot be installed they skip and say so.
if ! command -v chromium >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null ||
    echo "chromium could not be installed; the browser tests will be skipped"
fi
# Many tests start processes of ours; where nothing may be kept each would compile all its modules.
unset PYTHONDONTWRITEBYTECODE
# File by file on up to four cores, the long files first (conftest.py); a core each, else they wait
# for one another.
export OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv-tests/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile \
  --no-loadscope-reorder "$@"
