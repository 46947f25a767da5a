# Sourced by the three programs: endpoints, pauses between attempts, and the little JSON that they read.
#
# Keys and values are asked for in base64. So no string in the JSON contains an escape or a brace, and sed can read it safely.

# Relays' ports for etcd's API, whose JSON gateway changes etcd, and their HTTP ports, which list and watch. Each list is
# tried in turn: `move_on` goes to the next one.
endpoints=${ETCD_ENDPOINTS:-http://127.0.0.1:23790}
http_endpoints=${RELAY_HTTP:-http://127.0.0.1:9001}

move_on() {
    endpoints=${endpoints#*,},${endpoints%%,*}
    http_endpoints=${http_endpoints#*,},${http_endpoints%%,*}
    # If the list has one entry, it now has the same entry twice.
    [ "${endpoints%%,*}" != "${endpoints#*,}" ] || endpoints=${endpoints%%,*}
    [ "${http_endpoints%%,*}" != "${http_endpoints#*,}" ] || http_endpoints=${http_endpoints%%,*}
}

# Sleeps in the background, so that a signal is handled at once.
rest() {
    sleep "$1" &
    wait $!
}

# Milliseconds as seconds.
seconds() { printf '%d.%03d' "$(($1 / 1000))" "$(($1 % 1000))"; }

# The pause before the next attempt, of $1 milliseconds at most. It doubles with each failure, and differs from client to client, so
# that a thousand clients that lost the same server do not come back in the same instant. `delay=0` is for success.
delay=0
pause() {
    delay=$((delay * 2))
    [ "$delay" -ge 100 ] || delay=100
    [ "$delay" -le "$1" ] || delay=$1
    random=$(od -An -N2 -tu2 /dev/urandom)
    rest "$(seconds $((delay / 2 + random % (delay / 2 + 1))))"
}

# The field $1 of a flat JSON object $2: a number, also in quotes, or base64. Empty if there is none.
field() { printf '%s\n' "$2" | sed -n "s|.*\"$1\": *\"\{0,1\}\([A-Za-z0-9+/=]*\).*|\1|p"; }

to_base64() { printf %s "$1" | base64 | tr -d '\n'; }

# Decodes base64 into one line, without control characters for the terminal. A dash stands for an empty value.
in_text() { [ "$1" = - ] || printf %s "$1" | base64 -d | tr -d '\000-\037\177'; }

seconds_since() { echo $(($(date +%s) - $1)); }

# Names are put into URLs and JSON unchanged.
check_name() {
    case $1 in
    '' | *[!A-Za-z0-9._-]*)
        echo "A name has letters, digits, dots, dashes and underscores, and is not empty: '$1'" >&2
        exit 64
        ;;
    esac
}

usage() {
    echo "usage: $1" >&2
    exit 64
}
