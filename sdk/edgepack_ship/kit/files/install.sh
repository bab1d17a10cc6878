#!/bin/sh
# Installs @{name} and what runs it, without a network. As root for the whole machine, as any other user for that user.
#
#   EDGEPACK_PREFIX   where the environments of Python go
#   EDGEPACK_STORE    the store of bundles
#   PYTHON            the interpreter
#
# What was there before stays in use until the new bundle has answered as it should, and comes back where it does not.
set -eu

kit=$(cd "$(dirname "$0")" && pwd)
. "$kit/kit.env"

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\nhint: %s\n' "$1" "$2" >&2; exit 1; }

if [ "$(id -u)" = 0 ]; then
    prefix=${EDGEPACK_PREFIX:-/opt/edgepack}
    store=${EDGEPACK_STORE:-/var/lib/edgepack/store}
    units=${EDGEPACK_UNITS:-/etc/systemd/system}
else
    data=${XDG_DATA_HOME:-$HOME/.local/share}/edgepack
    prefix=${EDGEPACK_PREFIX:-$data/runtime}
    store=${EDGEPACK_STORE:-$data/store}
    units=${EDGEPACK_UNITS:-}
fi
EDGEPACK_STORE=$store
export EDGEPACK_STORE
python=${PYTHON:-python$KIT_PYTHON}

[ "$(uname -s)" = "$KIT_SYSTEM" ] && [ "$(uname -m)" = "$KIT_MACHINE" ] ||
    fail "This kit is for $KIT_SYSTEM on $KIT_MACHINE, and this is $(uname -s) on $(uname -m)." "Make one for this device."
"$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$KIT_PYTHON')" 2>/dev/null ||
    fail "This kit needs Python $KIT_PYTHON, and $python is not that." "Install it, or name it with PYTHON=..."
(cd "$kit" && "$python" check.py) || fail "The kit is damaged or cut short." "Copy it again."

# An environment for each set of wheels, at a path of its own: what runs is never changed.
env=$prefix/envs/$KIT_LOCK
if [ ! -e "$env/complete" ]; then
    say "Installing $KIT_WHEELS packages into $env"
    rm -rf "$env"
    mkdir -p "$prefix/envs"
    "$python" -m venv "$env"
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$kit/wheels" \
        --require-hashes --requirement "$kit/lock.txt"
    sync
    : > "$env/complete"
fi

# The first kit brings the policy; a later one is held to what is there.
if [ -e "$kit/policy.toml" ] && [ ! -e "$store/policy.toml" ]; then
    mkdir -p "$store"
    cp "$kit/policy.toml" "$store/.policy.new"
    mv "$store/.policy.new" "$store/policy.toml"
fi

# The new bundle comes in, and answers, before its name stands for it.
"$env/bin/edgepack" install "$kit/$KIT_BUNDLE" --name "$KIT_NAME" --replay

# One step puts the new environment in the place of the old one; another puts it back.
before=$(readlink "$prefix/current" 2>/dev/null || true)
point() { "$env/bin/python" -c "import os, sys; os.symlink(sys.argv[1], sys.argv[2] + '.new'); os.replace(sys.argv[2] + '.new', sys.argv[2])" "$1" "$prefix/current"; }
rm -f "$prefix/current.new"
point "envs/$KIT_LOCK"

if ! "$prefix/current/bin/edgepack" verify "$KIT_NAME" --replay; then
    "$env/bin/edgepack" rollback "$KIT_NAME" || true
    [ -z "$before" ] || point "$before"
    fail "$KIT_NAME does not answer as it should; what was there before is back." "edgepack list --all shows both."
fi

if [ -n "$units" ] && [ -d "$units" ]; then
    for unit in check rollback; do
        sed "s|@PREFIX@|$prefix|g; s|@STORE@|$store|g" "$kit/edgepack-$KIT_NAME-$unit.service" > "$units/.edgepack.new"
        mv "$units/.edgepack.new" "$units/edgepack-$KIT_NAME-$unit.service"
    done
    if command -v systemctl >/dev/null 2>&1 && [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl enable "edgepack-$KIT_NAME-check.service"
    fi
fi
say "Installed. Try: $prefix/current/bin/edgepack run $KIT_NAME"
