#!/bin/sh
# Registers one instance of a service in etcd while this program runs:
#
#   sh register.sh web http://10.0.0.1:8080
#
# The key /services/web/INSTANCE has a lease, so it is deleted within TTL seconds after this program dies, and at once when it is stopped. See ../README.md for
# the rules that this follows.
set -u
. "$(dirname "$0")/common.sh"

[ $# -eq 2 ] || usage "register.sh SERVICE ADDRESS (environment: ETCD_ENDPOINTS, TTL in seconds, INSTANCE)"
instance=${INSTANCE:-$(uname -n)-$$}
ttl=${TTL:-10}
check_name "$1"
check_name "$instance"
case $ttl in '' | *[!0-9]* | 0 | 1) usage "TTL must be a number of seconds, 2 or more" ;; esac
name=$1/$instance
key=$(to_base64 "/services/$name")
value=$(to_base64 "$2")
lease=
failed_since=

# A call, and the longest pause before the next attempt, take a fifth of the TTL each. The next renewal is due after a third. So there is time for a server that
# does not answer, and then for another one, before the lease ends. In milliseconds:
fifth=$((ttl * 200))
third=$((ttl * 1000 / 3))

# Calls etcd's JSON gateway. Puts the answer into `answer`, and fails if it is an error.
call() {
    answer=$(curl -sS --max-time "$(seconds "$fifth")" --fail-with-body -d "$2" "${endpoints%%,*}$1" 2>&1)
}

# Makes sure that the lease lives and that the key is there, with this lease. Each step may be repeated, so a failure halfway does no harm. Fails with 1 if etcd
# does not answer, and with 2 if the lease is gone.
renew() {
    if [ -z "$lease" ]; then
        call /v3/lease/grant "{\"TTL\": $ttl}" || return 1
        lease=$(field ID "$answer")
    else
        call /v3/lease/keepalive "{\"ID\": \"$lease\"}" || return 1
        # The answer about a lease that is gone has no TTL. A stream may also end with an error.
        case $answer in
        *'"result"'*'"TTL"'*) ;;
        *'"result"'*) return 2 ;;
        *) return 1 ;;
        esac
    fi
    # The key may be gone although the lease lives: deleted by hand, or missing in a cluster that was restored from a backup.
    call /v3/kv/range "{\"key\": \"$key\"}" || return 1
    if [ "$(field lease "$answer")" = "$lease" ] && [ "$(field value "$answer")" = "$value" ]; then return 0; fi
    if ! call /v3/kv/put "{\"key\": \"$key\", \"value\": \"$value\", \"lease\": \"$lease\"}"; then
        case $answer in *"lease not found"*) return 2 ;; *) return 1 ;; esac
    fi
    echo "registered $name at revision $(field revision "$answer"), with lease $(printf %x "$lease") and a TTL of $ttl s"
}

# Deletes the key at once, by revoking its lease. If etcd does not answer, the lease ends by itself.
leave() {
    trap '' INT TERM
    if [ -n "$lease" ] && ! call /v3/lease/revoke "{\"ID\": \"$lease\"}"; then
        case $answer in
        *"lease not found"*) ;;
        *)
            echo "left $name without an answer from etcd: it goes within $ttl s ($answer)"
            exit 0
            ;;
        esac
    fi
    echo "left $name"
    exit 0
}
trap leave INT TERM

while true; do
    renew
    case $? in
    0)
        [ -z "$failed_since" ] || echo "etcd answers again, after $(seconds_since "$failed_since") s"
        failed_since=
        delay=0
        rest "$(seconds "$third")"
        ;;
    2)
        echo "the lease is gone: registering again"
        lease=
        ;;
    *)
        # It is not known now whether the lease still lives. etcd will say so when it answers again.
        if [ -z "$failed_since" ]; then
            failed_since=$(date +%s)
            echo "no answer from etcd, trying again: $answer"
        fi
        move_on
        pause "$fifth"
        ;;
    esac
done
