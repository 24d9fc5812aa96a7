#!/usr/bin/env bash
# Runs the tests; arguments go to pytest.
#
#   bash launch/test.sh                  the default suite
#   bash launch/test.sh -m slow          the tests that take minutes each
#   bash launch/test.sh tests/test_spans.py -k trim
SSL_JAX_EXTRAS="test"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest "$@"
