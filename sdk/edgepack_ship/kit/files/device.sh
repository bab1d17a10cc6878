#!/bin/sh
# What a device does with what kits installed: sh device.sh verify|check|rollback|clean NAME
#
#   verify     every byte, and every self-test, of what NAME stands for
#   check      the same, and back to the bundle before where that fails
#   rollback   the bundle before, with the environment that it answered in; a second one undoes the first
#   clean      take away bundles that no name stands for, and environments that no bundle needs
set -eu

prefix=@PREFIX@
store=@STORE@
export EDGEPACK_STORE="$store"
[ $# = 2 ] || { echo "usage: sh device.sh verify|check|rollback|clean NAME" >&2; exit 2; }
name=$2
current=$prefix/current/$name

verify() { "$current/bin/edgepack" verify "$name" --replay; }

# The environment of the bundle before does it: the present one may be what is broken.
rollback() {
    before=$(sed -n 's/.*"previous": *"\([0-9a-f]*\)".*/\1/p' "$store/names/$name.json")
    env=$(readlink "$prefix/proven/$before" || readlink "$current")
    "$prefix/current/$env/bin/edgepack" rollback "$name" &&
        "$prefix/current/$env/bin/python" -I "$prefix/point.py" "$env" "$current"
}

clean() {
    "$current/bin/edgepack" gc > /dev/null
    for link in "$prefix"/proven/*; do
        [ -d "$store/bundles/${link##*/}" ] || rm -f "$link"
    done
    used=$(for link in "$prefix"/proven/* "$prefix"/current/*; do readlink "$link" || true; done)
    for env in "$prefix"/envs/*; do
        case $used in *"${env##*/}"*) ;; *) rm -rf "$env" ;; esac
    done
}

case $1 in
    verify) verify ;;
    check) verify || { rollback && verify; } ;;
    rollback) rollback ;;
    clean) clean ;;
    *) echo "device.sh knows no $1." >&2; exit 2 ;;
esac
