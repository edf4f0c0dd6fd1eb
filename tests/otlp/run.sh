#!/usr/bin/env bash
# OpenTelemetry's own SDK, its OTLP exporter and its instrumentation of the client `openai` export the calls of a program
# to a server that this script starts. A stub stands in for the provider. The test then compares the log and the report
# with what the stub answered, at the prices that `litespend cost` prints. Needs Python 3.10 and the package index, so it
# is not among the tests of `./dev test`. LITESPEND_BIN names the program; without it, it is built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

. tests/clients/server.sh
venv=$target/otlp-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install -q -r tests/otlp/requirements.txt

start traces sk-otlp-test LITESPEND_OTLP_TAG_ATTRIBUTE=service.name,deployment.environment.name
"$venv/bin/python" tests/otlp/calls.py "http://$address" sk-otlp-test "$bin" "$home/traces.log" earlier-names
OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental \
    "$venv/bin/python" tests/otlp/calls.py "http://$address" sk-otlp-test "$bin" "$home/traces.log" newest-names
