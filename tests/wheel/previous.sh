#!/usr/bin/env bash
# Builds the version before this one, once, and prints the path of its program. That version is the newest tag before this
# commit, or the commit below as long as there are no tags. LITESPEND_PREVIOUS names another commit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

before_any_tag=099c889
name=${LITESPEND_PREVIOUS:-$(git describe --tags --abbrev=0 HEAD^ 2>/dev/null || echo "$before_any_tag")}
commit=$(git rev-parse --verify --quiet --short=12 "$name^{commit}") ||
    { echo "this checkout has no commit $name; it may be shallow" >&2; exit 3; }

target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/previous
program=$target/litespend-$commit
if [ ! -x "$program" ]; then
    source=$target/source-$commit
    rm -rf "$source"
    mkdir -p "$source"
    git archive "$commit" | tar -x -C "$source"
    # The folder lies in this checkout, but belongs to no workspace of it.
    grep -q '^\[workspace\]' "$source/Cargo.toml" || printf '\n[workspace]\n' >>"$source/Cargo.toml"
    (cd "$source" && CARGO_TARGET_DIR=$target CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0 \
        cargo build --locked --bin litespend >&2)
    mv "$target/debug/litespend" "$program"
    rm -rf "$source" "$target/debug"
fi
printf '%s\n' "$program"
