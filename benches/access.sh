#!/usr/bin/env bash
#
# What authentication costs: GETs of an agent with a token and with an API key against the same without authentication.
# Each measurement has a fresh process, since two of the same program differ by more than is asked for here, and the
# kinds take turns in random order. Needs wrk, jq, bc, a release build, DATABASE_URL and KAFKA_BROKERS
# (`./deploy-api.sh services` starts both and prints them).
#
#   benches/access.sh [SECONDS [ROUNDS]]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export SHUTDOWN_NOTICE_SECS=0

readonly SECONDS_EACH="${1:-2}" ROUNDS="${2:-30}" PROGRAM="${PROGRAM:-target/release/workflow-api}" PORT=8099
readonly DATABASE="bench_$$" SERVICE="http://127.0.0.1:$PORT"
ADMIN_URL="${DATABASE_URL:?}"
export DATABASE_URL="${ADMIN_URL%/*}/$DATABASE" API_HOST=127.0.0.1 API_PORT="$PORT" API_WORKERS=2 LOG_LEVEL=WARNING
export KAFKA_EXECUTION_TOPIC="bench-$$" KAFKA_CANCELLATION_TOPIC="bench-$$-cancel" EGRESS_ALLOW=127.0.0.1
SECRET="$(openssl rand -hex 32)"
KEY="$("$PROGRAM" api-key)"
TOKEN="$(JWT_SECRET="$SECRET" "$PROGRAM" token --sub bench --role admin)"
readonly SECRET KEY TOKEN
PID=""

start() { # the service, with these settings
    env "$@" "$PROGRAM" serve &
    PID=$!
    until curl -fs "$SERVICE/health/ready" >/dev/null; do sleep 0.05; done
}
stop() {
    [[ -n $PID ]] || return 0
    kill "$PID"
    wait "$PID" || true
    PID=""
}
RESULTS="$(mktemp)"
clean_up() {
    stop
    rm -f "$RESULTS"
    psql -q "$ADMIN_URL" -c "DROP DATABASE $DATABASE WITH (FORCE)"
}
psql -q "$ADMIN_URL" -c "CREATE DATABASE $DATABASE"
trap clean_up EXIT

# All threads' time on a processor, in microseconds.
cpu() { awk '{sum += $1} END {printf "%.0f", sum / 1000}' /proc/"$PID"/task/*/schedstat; }

measure() { # one line: round, kind, microseconds of CPU per request, requests per second
    local round=$1 kind=$2 headers=() before requests result
    case $kind in
        anonymous) start AUTH_ENABLED=false ;;
        token) start JWT_SECRET="$SECRET" BOOTSTRAP_API_KEY="$KEY"; headers=(-H "authorization: Bearer $TOKEN") ;;
        key) start JWT_SECRET="$SECRET" BOOTSTRAP_API_KEY="$KEY"; headers=(-H "x-api-key: $KEY") ;;
    esac
    wrk -t1 -c16 -d1s "${headers[@]}" "$SERVICE/api/v1/agents/$AGENT" >/dev/null
    before=$(cpu)
    result=$(wrk -t1 -c16 -d"${SECONDS_EACH}s" "${headers[@]}" "$SERVICE/api/v1/agents/$AGENT")
    ! grep -q 'Non-2xx' <<<"$result" || { echo "$result" >&2; exit 1; }
    requests=$(awk '/requests in/ {print $1}' <<<"$result")
    echo "$round $kind $(bc <<<"scale=2; ($(cpu) - $before) / $requests") $(awk '/Requests\/sec/ {print $2}' <<<"$result")"
    stop
}

start
AGENT=$(curl -fs -H 'content-type: application/json' -d '{"name":"bench","url":"http://127.0.0.1:9/"}' \
    "$SERVICE/api/v1/agents" | jq -r .id)
stop
for ((round = 1; round <= ROUNDS; round++)); do
    for kind in $(shuf -e anonymous token key); do measure "$round" "$kind"; done
done >"$RESULTS"

awk '{cpu[$2, $1] = $3; rate[$2, $1] = $4; rounds = $1}
    # Mean of the rounds, and its standard error.
    function show(what, of, kind,    i, ratio, sum, squares, mean) {
        for (i = 1; i <= rounds; i++) { ratio = of[kind, i] / of["anonymous", i]; sum += ratio; squares += ratio ^ 2 }
        mean = sum / rounds
        printf "%s, %s / anonymous: %.3f +- %.3f\n", what, kind, mean, sqrt((squares / rounds - mean ^ 2) / rounds)
    }
    END {
        for (i = 1; i <= rounds; i++) { us += cpu["anonymous", i] / rounds; persec += rate["anonymous", i] / rounds }
        printf "anonymous: %.0f requests/s, %.1f us of CPU each\n", persec, us
        show("requests/s", rate, "token"); show("CPU", cpu, "token"); show("requests/s", rate, "key"); show("CPU", cpu, "key")
    }' "$RESULTS"
