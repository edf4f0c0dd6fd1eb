#!/usr/bin/env bash
# Checks deploy/compose, deploy/kubernetes and deploy/systemd: manifests against their schemas, settings and flags
# against the program, probes against a running server, and backup and restore as docs/deployment.md describes them.
# Needs Python 3.11 and the package index, so it is not among the tests of `./dev test`. LITESPEND_BIN names a ready
# program.
#   tests/deploy/run.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target=${CARGO_TARGET_DIR:-target}
bin=$(realpath "${LITESPEND_BIN:-$target/debug/litespend}")

venv=$target/deploy-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
if ! cmp -s tests/deploy/requirements.txt "$venv/installed.txt"; then
    "$venv/bin/pip" install -q --disable-pip-version-check -r tests/deploy/requirements.txt
    cp tests/deploy/requirements.txt "$venv/installed.txt"
fi
PATH=$(realpath "$venv/bin"):$PATH
export PYTHONDONTWRITEBYTECODE=1

# Under root, PostgreSQL runs as another account, which must be able to enter the directory.
work=$(mktemp -d /tmp/litespend-deploy.XXXXXX)
chmod 755 "$work"
server=
clean_up() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null && wait "$server" || true
    fi
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

failed=0
report() {
    printf '%-5s %s\n' "$1" "$2"
    [ "$1" != FAIL ] || failed=1
}
# Runs a command, and prints what it said only if it fails.
check() {
    local name=$1
    shift
    if "$@" >"$work/said" 2>&1; then
        report ok "$name"
    else
        report FAIL "$name"
        sed 's/^/      /' "$work/said"
    fi
}

kubernetes_version=$(sed -n 's/^kubernetes-validate==//p' tests/deploy/requirements.txt)
check "every YAML file is tidy" yamllint --strict -c tests/deploy/yamllint.yaml deploy/compose deploy/kubernetes
for file in deploy/compose/*.yaml; do
    check "$file fits the compose schema" check-jsonschema --builtin-schema vendor.compose-spec "$file"
done
for file in deploy/kubernetes/*.yaml; do
    # These kinds are not Kubernetes' own. check.py looks at their fields.
    case $(basename "$file") in kustomization.yaml | scrapeconfig.yaml | servicemonitor.yaml) continue ;; esac
    check "$file fits the schema of Kubernetes $kubernetes_version" \
        kubernetes-validate --strict -k "$kubernetes_version" "$file"
done
if command -v kubectl >/dev/null 2>&1; then
    check "the kustomization can be built" kubectl kustomize deploy/kubernetes
else
    report skip "the kustomization was not built: kubectl is missing"
fi
if command -v systemd-analyze >/dev/null 2>&1; then
    sed "s#/usr/local/bin/litespend#$bin#" deploy/systemd/litespend.service >"$work/litespend.service"
    verify_unit() {
        local said
        said=$(systemd-analyze verify "$work/litespend.service" 2>&1)
        [ -z "$said" ] || { echo "$said"; return 1; }
    }
    check "the unit is valid" verify_unit
    check "the unit's exposure is 1.5 at most" \
        systemd-analyze security --offline=true --no-pager --threshold=15 "$work/litespend.service"
else
    report skip "the unit was not checked: systemd-analyze is missing"
fi

"$bin" serve --help >"$work/help"
static() { check "$1" python3 tests/deploy/check.py "$2" --help-text "$work/help"; }
static "the kustomization lists every manifest" kustomization
static "the ServiceMonitor's fields are those of the operator" servicemonitor
static "the ScrapeConfig's fields are those of the operator, and it has one target" scrapeconfig
static "every setting is one of litespend's" settings
static "every flag is one of litespend's" flags
static "services, probes and policies name the same port" ports

export LITELLM_MASTER_KEY
LITELLM_MASTER_KEY=sk-$(python3 -c 'import secrets; print(secrets.token_hex(16))')
# Settings of whoever runs this, which would lead to databases and archives of theirs.
unset DATABASE_URL DATABASE_URL_READ_REPLICA DIRECT_URL CONFIG_FILE_PATH LITESPEND_ARCHIVE_URL
"$bin" serve --host 127.0.0.1 --port 0 --data-dir "$work/home" >"$work/out" 2>"$work/log" &
server=$!
url=
for _ in $(seq 300); do
    url=$(sed -n 's/^ *address *\(http:[^ ]*\).*/\1/p' "$work/out")
    [ -z "$url" ] && kill -0 "$server" 2>/dev/null || break
    sleep 0.1
done
if [ -n "$url" ]; then
    for path in $(python3 tests/deploy/check.py probe-paths); do
        check "$path is 200 without a key" curl -fsS -o "$work/body" "$url$path"
    done
    for path in $(python3 tests/deploy/check.py monitor-paths); do
        check "$path is 200 with a key" \
            curl -fsS -o "$work/body" -H "Authorization: Bearer $LITELLM_MASTER_KEY" "$url$path"
    done
    kill "$server"
    check "the server stops when it is told to" wait "$server"
    server=
else
    report FAIL "the server starts"
    tail -5 "$work/log"
fi

LITESPEND_BIN=$bin tests/deploy/backup.sh || failed=1
exit "$failed"
