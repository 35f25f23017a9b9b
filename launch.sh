#!/usr/bin/env bash
# Starts lycogui; the first time it makes .venv and installs everything.
#   ./launch.sh            the app, in a window of its own
#   ./launch.sh demo       the whole story without a screen: LoRA, LoHa, and a comparison grid
#   ./launch.sh --help     the app's options
set -eu
cd "$(dirname "$0")"
for python in "${PYTHON:-}" python3.12 python3.13 python3.11 python3.14 python3 python; do
  if [ -n "$python" ] && command -v "$python" >/dev/null 2>&1 &&
     "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
    exec "$python" lycogui/install.py "$@"
  fi
done
echo "lycogui needs Python 3.11 to 3.14, and none was found. Install one (https://www.python.org/downloads/),"
echo "or name yours: PYTHON=/path/to/python3.12 ./launch.sh"
exit 1
