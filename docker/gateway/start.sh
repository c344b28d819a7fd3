#!/bin/sh
# Run Envoy as the gateway: write its configuration from envoy.yaml and the environment, and apply changes of the
# certificate and the API keys without a restart.
#
#   TRITON_HOST                   where Triton listens; also TRITON_HTTP_PORT, TRITON_GRPC_PORT
#   SECRETS_FOLDER                holds tls.crt (the chain), tls.key, and api_keys: a line "NAME KEY" for each key
#   RUN_FOLDER                    a folder to write to, which only this process may read
#   GATEWAY_ADDRESS GATEWAY_PORT METRICS_PORT MAX_REQUEST_BYTES TIMEOUT_S REQUESTS_PER_SECOND BURST MAX_CONNECTIONS
#   MAX_HEAP_BYTES                see the defaults below
set -eu
umask 077

fail() {
    echo "gateway: $*" >&2
    exit 1
}

: "${TRITON_HOST:?expected the host name of Triton in TRITON_HOST}"
: "${SECRETS_FOLDER:?expected the folder of tls.crt, tls.key and api_keys in SECRETS_FOLDER}"
: "${RUN_FOLDER:?expected a folder to write to in RUN_FOLDER}"
: "${TRITON_HTTP_PORT:=8000}" "${TRITON_GRPC_PORT:=8001}"
: "${GATEWAY_ADDRESS:=0.0.0.0}" "${GATEWAY_PORT:=8443}" "${METRICS_PORT:=9902}"
: "${MAX_REQUEST_BYTES:=67108864}" "${TIMEOUT_S:=60}" "${REQUESTS_PER_SECOND:=200}" "${BURST:=400}"
: "${MAX_CONNECTIONS:=1000}" "${MAX_HEAP_BYTES:=1610612736}"

NUMBERS="TRITON_HTTP_PORT TRITON_GRPC_PORT GATEWAY_PORT METRICS_PORT MAX_REQUEST_BYTES TIMEOUT_S REQUESTS_PER_SECOND
    BURST MAX_CONNECTIONS MAX_HEAP_BYTES"
TEXTS="TRITON_HOST GATEWAY_ADDRESS RUN_FOLDER"
here=$(dirname "$0")

render_bootstrap() {
    script=
    for name in $NUMBERS $TEXTS; do
        value=$(eval "printf %s \"\$$name\"")
        case "$NUMBERS" in
            *"$name"*) pattern='*[!0-9]*' expected='a whole number above 0' ;;
            *) pattern='*[!A-Za-z0-9._:/-]*' expected='letters, digits and . _ : / -' ;;
        esac
        # shellcheck disable=SC2254  # a pattern on purpose
        case "$value" in
            '' | 0 | $pattern) fail "expected $name to be $expected, got '$value'" ;;
        esac
        script="${script}s|@$name@|$value|g;"
    done
    sed "$script" "$here/envoy.yaml" > "$RUN_FOLDER/envoy.yaml"
    cp "$here/requests.lua" "$RUN_FOLDER/requests.lua"
}

# Write the routes of one client: requests with its key. A here-document, because others can see the arguments of a
# process.
write_client_routes() {
    match="match: {prefix: /, headers: [{name: authorization, string_match: {exact: \"Bearer $2\"}}"
    client="metadata: {filter_metadata: {mlcls: {client: \"$1\"}}}"
    cat << END
      # Most clients send the whole request before they read the answer: one that announces a size above the limit is read
      # to its end, within reason, or the client would see a broken connection instead of the limit.
      - name: "$1"
        $match, {name: content-length, range_match: {start: $((MAX_REQUEST_BYTES + 1)), end: 9223372036854775807}}]}
        $client
        direct_response: {status: 413}
        typed_per_filter_config:
          size_limit:
            "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute
            buffer: {max_request_bytes: {value: $((MAX_REQUEST_BYTES * 4))}}
          content: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute, disabled: true}
      - name: "$1"
        $match], grpc: {}}
        $client
        request_headers_to_remove: [authorization]
        route: {cluster: triton_grpc, timeout: ${TIMEOUT_S}s}
      - name: "$1"
        $match]}
        $client
        request_headers_to_remove: [authorization]
        route: {cluster: triton_http, timeout: ${TIMEOUT_S}s}
END
}

# Write the routes from the operator's file of keys. Nothing that is printed contains a key.
render_keys() {
    file=$SECRETS_FOLDER/api_keys
    [ -r "$file" ] || { echo "gateway: expected a file of API keys at $file, cannot read it" >&2; return 1; }
    {
        cat << 'END'
resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: public
  virtual_hosts:
  - name: triton
    domains: ["*"]
    routes:
END
        number=0 count=0 seen=' '
        while read -r name key rest || [ -n "$name" ]; do
            number=$((number + 1))
            case "$name" in '' | '#'*) continue ;; esac
            problem=
            case "$name" in *[!A-Za-z0-9._-]*) problem='a name of letters, digits and . _ -' ;; esac
            case "$key" in *[!A-Za-z0-9._~+/=-]*) problem='a key of letters, digits and . _ ~ + / = -' ;; esac
            [ "${#key}" -ge 32 ] || problem='a key of at least 32 characters (openssl rand -hex 32)'
            [ -z "$rest" ] || problem='NAME KEY and nothing after them'
            case "$seen" in *" $key "*) problem='each key once' ;; esac
            [ -z "$problem" ] || { echo "gateway: $file, line $number: expected $problem" >&2; return 1; }
            seen="$seen$key " count=$((count + 1))
            write_client_routes "$name" "$key"
        done < "$file"
        [ "$count" -gt 0 ] || { echo "gateway: expected at least one line 'NAME KEY' in $file, got none" >&2; return 1; }
        cat << 'END'
      - name: unknown
        match: {prefix: /}
        direct_response: {status: 401}
        response_headers_to_add: [{header: {key: www-authenticate, value: Bearer}}]
        typed_per_filter_config:
          calls: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute}
          size_limit: {"@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute, disabled: true}
          content: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute, disabled: true}
END
    } > "$RUN_FOLDER/routes.new" || return 1
    mv "$RUN_FOLDER/routes.new" "$RUN_FOLDER/routes.yaml"  # Envoy watches for a file that is moved here
}

render_certificate() {
    for file in tls.crt tls.key; do
        grep -q -e '-----BEGIN' "$SECRETS_FOLDER/$file" 2> /dev/null ||
            { echo "gateway: expected a PEM file at $SECRETS_FOLDER/$file, got none that can be read" >&2; return 1; }
    done
    {
        echo 'resources:'
        echo '- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret'
        echo '  name: gateway'
        echo '  tls_certificate:'
        echo '    certificate_chain:'
        echo '      inline_string: |'
        sed 's/^/        /' "$SECRETS_FOLDER/tls.crt"
        echo '    private_key:'
        echo '      inline_string: |'
        sed 's/^/        /' "$SECRETS_FOLDER/tls.key"
    } > "$RUN_FOLDER/tls.new"
    mv "$RUN_FOLDER/tls.new" "$RUN_FOLDER/tls.yaml"
}

fingerprint() {
    cat "$@" 2> /dev/null | cksum
}

# Whether Envoy, which replaces this script, is still the parent of this process.
has_parent() {
    read -r _ _ _ parent _ < /proc/self/stat
    [ "$parent" = "$1" ]
}

# Compare contents, not times: this notices a file that is edited in place, replaced, or reached through a link.
follow_changes() {
    keys=$1 certificate=$2
    while sleep 1 && has_parent "$3"; do
        now=$(fingerprint "$SECRETS_FOLDER/api_keys")
        if [ "$now" != "$keys" ]; then
            keys=$now
            if render_keys; then echo "gateway: new API keys"; else echo "gateway: the API keys stay as they were" >&2; fi
        fi
        now=$(fingerprint "$SECRETS_FOLDER/tls.crt" "$SECRETS_FOLDER/tls.key")
        if [ "$now" != "$certificate" ]; then
            certificate=$now
            if render_certificate; then echo "gateway: new certificate"; else echo "gateway: the certificate stays as it was" >&2; fi
        fi
    done
}

mkdir -p "$RUN_FOLDER"
render_bootstrap
keys=$(fingerprint "$SECRETS_FOLDER/api_keys")
certificate=$(fingerprint "$SECRETS_FOLDER/tls.crt" "$SECRETS_FOLDER/tls.key")
render_keys && render_certificate || exit 1
follow_changes "$keys" "$certificate" $$ &
exec envoy --config-path "$RUN_FOLDER/envoy.yaml" --log-level warn --file-flush-interval-msec 1000 --disable-hot-restart "$@"
