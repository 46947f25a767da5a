# Sourced by discover.sh and config.sh: follows keys over `/v1/watch`, forever. The caller has these functions:
#
#   listed REVISION     the file $listed has all keys, one a line: KEY VALUE REVISION
#   put KEY VALUE REVISION, delete KEY REVISION
#   cut_off REASON      changes may be late from now on
#   resumed REVISION    the interruption is over, and nothing was missed
#
# Keys and values are in base64, and an empty value is a dash.
#
# `last` is always the id of the last event that was handled completely, and everything up to its revision has arrived. A stream that starts there repeats
# nothing and misses nothing, whichever relay serves it.

folder=$(mktemp -d)
listed=$folder/listed
last=
cluster=
is_cut_off=
curl_pid=
trap 'rm -rf "$folder"; [ -z "$curl_pid" ] || kill "$curl_pid" 2>/dev/null' EXIT
trap 'exit 0' INT TERM

# Follows the keys of a query, such as prefix=/services/web/.
follow() {
    mkfifo "$folder/stream"
    while true; do
        if is_same_past "$1"; then read_stream "$1"; fi
        if [ -z "$is_cut_off" ]; then
            is_cut_off=yes
            cut_off "$reason"
        fi
        move_on
        pause 3000
    done
}

# Whether the relay answers. If etcd was restored from a backup, its past is another one, and the next stream starts with a snapshot.
is_same_past() {
    if ! answer=$(curl -sS --max-time 5 --fail "${http_endpoints%%,*}/v1/keys?$1&limit=1&keys_only=true&encoding=base64" 2>&1); then
        reason=$(printf %s "$answer" | head -n 1)
        return 1
    fi
    now=$(field cluster_id "$answer")
    revision=$(printf '%s\n' "$answer" | sed -n 's/^{"revision":\([0-9]*\).*/\1/p')
    if [ -n "$last" ] && { [ "$now" != "$cluster" ] || [ "$revision" -lt "$last" ]; }; then
        echo "etcd was restored: listing again"
        last=
    fi
    cluster=$now
}

# Returns when the stream has ended, with the reason in `reason`.
read_stream() {
    if [ -n "$last" ]; then from="since=$last"; else from="snapshot=true"; fi
    # A relay sends something every 15 seconds. If nothing arrives for 45 seconds, it is frozen, or the network is broken.
    curl -sSN --connect-timeout 5 --speed-limit 1 --speed-time 45 -w '\n: ended with %{http_code}\n' \
        "${http_endpoints%%,*}/v1/watch?$1&$from&encoding=base64" >"$folder/stream" 2>&1 &
    curl_pid=$!
    reason="the stream ended"
    event= data= id=
    while IFS= read -r line; do
        case $line in
        "retry: "*) opened ;;
        "event: "*) event=${line#event: } ;;
        "data: "*) data=${line#data: } ;;
        "id: "*) id=${line#id: } ;;
        '') dispatch ;;
        ": ended with 400" | ": ended with 410") last= ;;
        # The reason of a failure, from curl or the relay.
        "curl: "* | '{"error"'*) reason=$line ;;
        esac
    done <"$folder/stream"
    wait "$curl_pid"
    curl_pid=
}

# An open stream starts with `retry:`. If it continues from the last id, nothing was missed.
opened() {
    delay=0
    if [ -n "$last" ] && [ -n "$is_cut_off" ]; then
        is_cut_off=
        resumed "$last"
    fi
}

# Handles one event of the stream. A blank line ends it.
dispatch() {
    case $event in
    snapshot)
        case $data in *'"first":true'*) : >"$listed" ;; esac
        printf '%s\n' "$data" | sed 's/.*"kvs":\[//; s/\].*//; s/},{/}\n{/g' | while IFS= read -r object; do
            [ -z "$object" ] || echo "$(field key_base64 "$object") $(value_of "$object") $(field mod_revision "$object")"
        done >>"$listed"
        case $data in
        *'"last":true'*)
            is_cut_off=
            listed "$(printf '%s\n' "$data" | sed -n 's/^{"revision":\([0-9]*\).*/\1/p')"
            ;;
        esac
        ;;
    put) put "$(field key_base64 "$data")" "$(value_of "$data")" "$(field mod_revision "$data")" ;;
    delete) delete "$(field key_base64 "$data")" "$(field mod_revision "$data")" ;;
    compacted) echo "etcd has compacted what came next: a list follows" ;;
    end) reason=$data ;;
    esac
    [ -z "$id" ] || last=$id
    event= data= id=
}

value_of() {
    value=$(field value_base64 "$1")
    echo "${value:--}"
}
