#!/bin/sh
# Find a Python that is new enough and let it set up .venv. Usage: tools/setup.sh lab|dev
# PYTHON=... chooses the Python for a new .venv; an existing .venv keeps its own.
set -eu
cd "$(dirname "$0")/.."

new_enough() { # run it: a name on the PATH may still start nothing
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -e .venv ]; then
    if ! new_enough .venv/bin/python; then
        echo "The folder .venv holds no working Python 3.11 or newer (was it moved, or its Python removed?):" \
            "delete .venv and run this again." >&2
        exit 1
    fi
    exec .venv/bin/python -m tools.setup_venv "$1"
fi

if [ -n "${PYTHON:-}" ]; then
    if ! new_enough "$PYTHON"; then
        echo "PYTHON=$PYTHON is not a Python 3.11 or newer: name another, or leave PYTHON out." >&2
        exit 1
    fi
    exec "$PYTHON" -m tools.setup_venv "$1"
fi

for candidate in python3.13 python3.12 python3.11 python3 python; do
    if new_enough "$candidate"; then
        exec "$candidate" -m tools.setup_venv "$1"
    fi
done
echo "Python 3.11 or newer is needed and none was found: install it (python.org, or your system's packages)," \
    "or name it by PYTHON=/path/to/python3." >&2
exit 1
