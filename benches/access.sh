#!/usr/bin/env bash
#
# What authentication costs: GETs of an agent per second with a token and with an API key, against the same without
# authentication, one after the other, several times; then the medians' ratios. Needs wrk, jq, a release build,
# DATABASE_URL and KAFKA_BROKERS (`./deploy-api.sh services` starts both and prints them).
#
#   benches/access.sh [SECONDS [ROUNDS]]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly SECONDS_EACH="${1:-5}" ROUNDS="${2:-5}" PROGRAM="${PROGRAM:-target/release/workflow-api}"
readonly DATABASE="bench_$$" OPEN=http://127.0.0.1:8098 CLOSED=http://127.0.0.1:8099
ADMIN_URL="${DATABASE_URL:?}"
export DATABASE_URL="${ADMIN_URL%/*}/$DATABASE" API_HOST=127.0.0.1 API_WORKERS=2 LOG_LEVEL=WARNING
export KAFKA_EXECUTION_TOPIC="bench-$$" KAFKA_CANCELLATION_TOPIC="bench-$$-cancel"
SECRET="$(openssl rand -hex 32)"
BOOTSTRAP="$("$PROGRAM" api-key)"

psql -q "$ADMIN_URL" -c "CREATE DATABASE $DATABASE"
API_PORT=8098 "$PROGRAM" serve &
OPEN_PID=$!
API_PORT=8099 JWT_SECRET="$SECRET" BOOTSTRAP_API_KEY="$BOOTSTRAP" "$PROGRAM" serve &
CLOSED_PID=$!
trap 'kill $OPEN_PID $CLOSED_PID; wait || true; psql -q "$ADMIN_URL" -c "DROP DATABASE $DATABASE WITH (FORCE)"' EXIT
for url in "$OPEN" "$CLOSED"; do
    until curl -fs "$url/health/ready" >/dev/null; do sleep 0.1; done
done

AGENT=$(curl -fs -H 'content-type: application/json' -d '{"name":"bench","url":"http://127.0.0.1:9/"}' \
    "$OPEN/api/v1/agents" | jq -r .id)
TOKEN="$(JWT_SECRET="$SECRET" "$PROGRAM" token --sub bench --role viewer)"
until curl -fs -H "x-api-key: $BOOTSTRAP" "$CLOSED/api/v1/agents/$AGENT" >/dev/null; do sleep 0.1; done

# Requests per second.
measure() {
    local result
    result=$(wrk -t2 -c64 -d"${SECONDS_EACH}s" "${@:2}" "$1/api/v1/agents/$AGENT")
    ! grep -q 'Non-2xx' <<<"$result" || { echo "$result" >&2; exit 1; }
    awk '/Requests\/sec/ {print $2}' <<<"$result"
}
median() { sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }

anonymous=() token=() key=()
for ((round = 1; round <= ROUNDS; round++)); do
    anonymous+=("$(measure "$OPEN")")
    token+=("$(measure "$CLOSED" -H "authorization: Bearer $TOKEN")")
    key+=("$(measure "$CLOSED" -H "x-api-key: $BOOTSTRAP")")
    echo "anonymous ${anonymous[-1]}  token ${token[-1]}  API key ${key[-1]}"
done
base=$(printf '%s\n' "${anonymous[@]}" | median)
for kind in token key; do
    declare -n rates="$kind"
    awk -v kind="$kind" -v rate="$(printf '%s\n' "${rates[@]}" | median)" -v base="$base" \
        'BEGIN {printf "%s / anonymous: %.3f\n", kind, rate / base}'
done
