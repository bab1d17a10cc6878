#!/bin/sh
# Installs @{name} and what runs it, without a network. As root for the whole machine, as any other user for that user.
#
#   EDGEPACK_PREFIX   where the environments of Python go
#   EDGEPACK_STORE    the store of bundles
#   EDGEPACK_UNITS    where systemd looks for units; empty: install none
#   PYTHON            the interpreter
#
# What was there before stays in use until the new bundle has answered as it should, and comes back where it does not.
set -eu

kit=$(cd "$(dirname "$0")" && pwd)
. "$kit/kit.env"

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\nhint: %s\n' "$1" "$2" >&2; exit 1; }

if [ "$(id -u)" = 0 ]; then
    umask 022
    prefix=${EDGEPACK_PREFIX:-/opt/edgepack}
    store=${EDGEPACK_STORE:-/var/lib/edgepack/store}
    units=${EDGEPACK_UNITS-/etc/systemd/system}
else
    data=${XDG_DATA_HOME:-${HOME:?}/.local/share}/edgepack
    prefix=${EDGEPACK_PREFIX:-$data/runtime}
    store=${EDGEPACK_STORE:-$data/store}
    units=${EDGEPACK_UNITS-}
fi
store=${store%%:*}
named=${EDGEPACK_STORE:+EDGEPACK_STORE=$store }
case $prefix:$store in
    /*:/*) ;;
    *) fail "$prefix and $store must be absolute paths." "Set EDGEPACK_PREFIX and EDGEPACK_STORE so." ;;
esac
case $prefix$store in
    *[!A-Za-z0-9/._+-]*) fail "$prefix or $store has letters that units and scripts read otherwise." \
        "Set EDGEPACK_PREFIX and EDGEPACK_STORE to paths of plain letters." ;;
esac
export EDGEPACK_STORE="$store"
python=${PYTHON:-python$KIT_PYTHON}

[ "$(uname -s) $(uname -m)" = "Linux $KIT_MACHINE" ] ||
    fail "This kit is for Linux on $KIT_MACHINE, and this is $(uname -s) on $(uname -m)." "Make one for this device."
"$python" -Ic "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$KIT_PYTHON')" 2>/dev/null ||
    fail "This kit needs Python $KIT_PYTHON, and $python is not that." "Install it, or name it with PYTHON=..."
(cd "$kit" && "$python" -I check.py) || fail "The kit is damaged or cut short." "Copy it again."

# One install at a time: the lock is this shell's as long as it lives, and nobody's after a loss of power.
mkdir -p "$prefix/envs" "$prefix/current" "$prefix/proven"
exec 9> "$prefix/lock"
"$python" -Ic "import fcntl; fcntl.flock(9, fcntl.LOCK_EX)"

# An environment for each set of wheels, at a path of its own: what runs is never changed.
env=$prefix/envs/$KIT_LOCK
if [ ! -e "$env/complete" ]; then
    say "Installing the packages of lock.txt into $env"
    rm -rf "$env"
    "$python" -Im venv "$env" || fail "$python cannot make an environment." "Debian has that in python$KIT_PYTHON-venv."
    "$env/bin/python" -Im pip --isolated install --quiet --disable-pip-version-check --no-cache-dir --no-index --no-deps \
        --only-binary :all: --find-links "$kit/wheels" --require-hashes --requirement "$kit/lock.txt" ||
        fail "The packages could not be installed; what was there before stays." "Is there space? See above."
    sync
    : > "$env/complete"
fi

# The first kit brings the policy; a later one is held to what is there.
if [ -e "$kit/policy.toml" ] && [ ! -e "$store/policy.toml" ]; then
    mkdir -p "$store"
    cp "$kit/policy.toml" "$store/.policy.new"
    sync
    mv "$store/.policy.new" "$store/policy.toml"
fi

# The new bundle comes in, and answers, before its name stands for it.
before=$(readlink "$prefix/current/$KIT_NAME" || true)
was=$(sed -n 's/.*"current": *"\([0-9a-f]*\)".*/\1/p' "$store/names/$KIT_NAME.json" 2>/dev/null || true)
"$env/bin/edgepack" install "$kit/$KIT_NAME.edgepack.tar" --name "$KIT_NAME" --replay ||
    { say "$KIT_NAME was not installed; whatever was in use before still is." >&2; exit 1; }

# Its environment is remembered by its id, to come back with it, and takes the place of the one before in one step.
for file in device.sh point.py; do
    sed "s|@PREFIX@|$prefix|; s|@STORE@|$store|" "$kit/$file" > "$prefix/.new"
    mv "$prefix/.new" "$prefix/$file"
done
device() { sh "$prefix/device.sh" "$1" "$KIT_NAME"; }
point() { "$env/bin/python" -I "$kit/point.py" "$1" "$prefix/proven/$KIT_ID" "$prefix/current/$KIT_NAME"; }
undo() { if [ "$was" = "$KIT_ID" ]; then point "$before"; else device rollback; fi; }
point "../envs/$KIT_LOCK"
device verify || {
    undo || fail "$KIT_NAME does not answer, and nothing was there before." "The lines above say why."
    fail "$KIT_NAME does not answer as it should; what was there before is back." "The lines above say why."
}
device clean

if [ -n "$units" ] && [ -d "$units" ]; then
    unit=edgepack-$KIT_NAME.service
    sed "s|@PREFIX@|$prefix|g; s|@STORE@|$store|g" "$kit/$unit" > "$units/.edgepack.new"
    mv "$units/.edgepack.new" "$units/$unit"
    if command -v systemctl >/dev/null 2>&1 && [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl enable "$unit"
    fi
fi
say "Installed. Try: $named$prefix/current/$KIT_NAME/bin/edgepack run $KIT_NAME"
