#!/bin/bash
# Health check of the gateway's container, which has neither curl nor wget.
set -eu
exec 3<> "/dev/tcp/127.0.0.1/${METRICS_PORT:-9902}"
printf 'GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
read -r -t 4 _ status _ <&3
[ "$status" = 200 ]
