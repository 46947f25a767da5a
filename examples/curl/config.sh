#!/bin/sh
# Follows a service's configuration in etcd, and reloads it when it changes:
#
#   sh config.sh web
#   etcdctl put /config/web '{"greeting": "hello", "workers": 4}'
#
# An invalid value is rejected, and the last valid one stays in use. See ../README.md for the rules that this follows.
set -u
. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/follow.sh"

[ $# -eq 1 ] || usage "config.sh SERVICE (environment: RELAY_HTTP)"
check_name "$1"

# The configuration in use, and its revision; empty until a valid one has been read.
greeting= workers= in_use=
seen=

in_use() { if [ -z "$in_use" ]; then echo "nothing in use yet"; else echo "revision $in_use stays in use"; fi; }

# Reads a value into new_greeting and new_workers. Rejects what it does not understand, and names it in `wrong`. This works for the two settings of this sample;
# for more of them, use jq.
parse() {
    new_greeting=$(printf %s "$1" | sed -n 's/.*"greeting" *: *"\([^"\\]*\)".*/\1/p')
    new_workers=$(printf %s "$1" | sed -n 's/.*"workers" *: *\(-\{0,1\}[0-9]\{1,9\}\) *[,}].*/\1/p')
    # Without the two settings, only the braces may be left. A misspelt name is an error, not a setting that has no effect.
    frame=$(printf %s "$1" | sed 's/"greeting" *: *"[^"\\]*"//; s/"workers" *: *-\{0,1\}[0-9]\{1,9\}//; s/[[:space:]]//g')
    if [ "$frame" != '{,}' ] && [ "$frame" != '{}' ]; then
        wrong="cannot read $frame"
    elif [ -z "$new_greeting" ]; then
        wrong="greeting is missing or empty"
    elif [ -z "$new_workers" ]; then
        wrong="workers is missing"
    elif [ "$new_workers" -lt 1 ] || [ "$new_workers" -gt 64 ]; then
        wrong="workers must be from 1 to 64, not $new_workers"
    else
        return 0
    fi
    return 1
}

listed() {
    if [ -s "$listed" ]; then
        read -r key value revision <"$listed"
        [ "$revision" = "$seen" ] || put "$key" "$value" "$revision"
    elif [ -n "$seen" ]; then
        delete - "$1"
    else
        echo "there is no configuration at revision $1"
    fi
}

put() {
    seen=$3
    if ! parse "$(in_text "$2")"; then
        echo "refused revision $3, $(in_use): $wrong"
        return 0
    fi
    changed=
    [ "$greeting" = "$new_greeting" ] || changed="greeting \"$greeting\" -> \"$new_greeting\""
    [ "$workers" = "$new_workers" ] || changed="${changed:+$changed, }workers $workers -> $new_workers"
    [ -n "$in_use" ] || changed="greeting \"$new_greeting\", workers $new_workers"
    # A shell script has only one thread. A program with several must replace all settings at once.
    greeting=$new_greeting workers=$new_workers in_use=$3
    echo "configuration of revision $3: ${changed:-nothing changed}"
}

delete() {
    seen=
    echo "deleted in revision $2, $(in_use)"
}

cut_off() { echo "cut off, $(in_use): $1"; }
resumed() { echo "up to date again at revision $1"; }

echo "following /config/$1"
follow "key=/config/$1"
