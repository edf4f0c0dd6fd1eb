#!/usr/bin/env bash
# Lets Prometheus scrape a litespend, and asks it every question of the dashboard, of the alerts, and of LiteLLM's own dashboards.
# Needs Python 3.11, the package index, and Prometheus with promtool (Debian's package `prometheus`, or PROMETHEUS_BIN and
# PROMTOOL_BIN). LITESPEND_BIN names a ready program; without it, a debug build is made.
#   tests/prometheus/run.sh [--seconds N] [--keep]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target=${CARGO_TARGET_DIR:-target}
bin=${LITESPEND_BIN:-$target/debug/litespend}

prometheus=${PROMETHEUS_BIN:-$(command -v prometheus || true)}
promtool=${PROMTOOL_BIN:-$(command -v promtool || true)}
if [ -z "$prometheus" ] || [ -z "$promtool" ]; then
    echo "prometheus or promtool is missing: install the package prometheus, or set PROMETHEUS_BIN and PROMTOOL_BIN" >&2
    exit 2
fi

[ -n "${LITESPEND_BIN:-}" ] || cargo build --locked --bin litespend

venv=$target/prometheus-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
if ! cmp -s tests/prometheus/requirements.txt "$venv/installed.txt"; then
    if ! "$venv/bin/pip" install -q --disable-pip-version-check -r tests/prometheus/requirements.txt; then
        echo "the package index does not answer, or lacks a package: Prometheus was not tested" >&2
        exit 2
    fi
    cp tests/prometheus/requirements.txt "$venv/installed.txt"
fi

export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests/archive
exec "$venv/bin/python" tests/prometheus/prometheus_test.py \
    --litespend "$bin" --prometheus "$prometheus" --promtool "$promtool" "$@"
