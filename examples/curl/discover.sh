#!/bin/sh
# Shows who is registered for a service, and keeps showing what changes:
#
#   sh discover.sh web
#
# See ../README.md for the rules that this follows, and follow.sh for the code that does.
set -u
. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/follow.sh"

[ $# -eq 1 ] || usage "discover.sh SERVICE (environment: RELAY_HTTP)"
check_name "$1"
prefix=/services/$1/

# The service as it is known now, one member per line: KEY VALUE, both in base64, which has neither spaces nor characters that are special to grep. A real
# program would choose from it which member to call.
members=$folder/members
: >"$members"

name_of() { in_text "$1" | sed "s|^$prefix||"; }
known() { sed -n "s|^$1 ||p" "$members"; }
count() { wc -l <"$members" | tr -d ' '; }

listed() {
    echo "listed at revision $1: $(wc -l <"$listed" | tr -d ' ') members"
    while read -r key _; do
        grep -q "^$key " "$listed" || echo "$key"
    done <"$members" >"$folder/gone"
    while read -r key; do delete "$key" "$1"; done <"$folder/gone"
    while read -r key value revision; do put "$key" "$value" "$revision"; done <"$listed"
}

put() {
    old=$(known "$1")
    [ "$old" != "$2" ] || return 0
    if [ -z "$old" ]; then
        echo "+ $(name_of "$1") $(in_text "$2") (revision $3)"
    else
        echo "~ $(name_of "$1") $(in_text "$2"), was $(in_text "$old") (revision $3)"
    fi
    forget "$1"
    echo "$1 $2" >>"$members"
}

delete() {
    [ -n "$(known "$1")" ] || return 0
    echo "- $(name_of "$1") (revision $2)"
    forget "$1"
}

forget() {
    grep -v "^$1 " "$members" >"$members.new"
    mv "$members.new" "$members"
}

cut_off() { echo "cut off, keeping $(count) members: $1"; }
resumed() { echo "up to date again at revision $1: $(count) members"; }

follow "prefix=$prefix"
