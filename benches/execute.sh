#!/usr/bin/env bash
#
# Executes per second at 64 clients against pgbench with the same three inserts at 64 clients, one after the other,
# several times. Needs wrk, pgbench, jq, a release build, DATABASE_URL and KAFKA_BROKERS (`./deploy-api.sh services`
# starts both and prints them).
#
#   benches/execute.sh [SECONDS [ROUNDS]]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export SHUTDOWN_NOTICE_SECS=0

readonly SECONDS_EACH="${1:-8}" ROUNDS="${2:-3}" PORT=8099
readonly DATABASE="bench_$$"
ADMIN_URL="${DATABASE_URL:?}"
export DATABASE_URL="${ADMIN_URL%/*}/$DATABASE" API_PORT="$PORT" API_HOST=127.0.0.1 API_WORKERS=2 EGRESS_ALLOW=127.0.0.1 LOG_LEVEL="${LOG_LEVEL:-WARNING}"
export KAFKA_EXECUTION_TOPIC="bench-$$" KAFKA_CANCELLATION_TOPIC="bench-$$-cancel"
readonly API="http://127.0.0.1:$PORT/api/v1"

psql -q "$ADMIN_URL" -c "CREATE DATABASE $DATABASE"
target/release/workflow-api serve &
API_PID=$!
trap 'kill $API_PID; wait $API_PID || true; psql -q "$ADMIN_URL" -c "DROP DATABASE $DATABASE WITH (FORCE)"' EXIT
until curl -fs "http://127.0.0.1:$PORT/health/ready" >/dev/null; do sleep 0.1; done

post() { curl -fs -H 'content-type: application/json' -d "$2" "$API/$1"; }
post agents '{"name":"bench","url":"http://127.0.0.1:9/"}' >/dev/null
WORKFLOW=$(post workflows '{"name":"bench","start_step":"a","steps":{"a":{"id":"a","agent_name":"bench","input_mapping":
    {"text":"${workflow.input.text}"}}}}' | jq -r .id)
LUA=$(mktemp --suffix=.lua)
cat >"$LUA" <<'LUA_END'
wrk.method = "POST"
wrk.body = '{"input_data":{"text":"hello"}}'
wrk.headers["content-type"] = "application/json"
LUA_END

for ((round = 1; round <= ROUNDS; round++)); do
    ours=$(wrk -t2 -c64 -d"${SECONDS_EACH}s" --latency -s "$LUA" "$API/workflows/$WORKFLOW/execute")
    ! grep -q 'Non-2xx' <<<"$ours" || { echo "$ours" >&2; exit 1; }
    control=$(pgbench -n -c64 -j2 -T"$SECONDS_EACH" -f benches/execute.sql "$DATABASE_URL" 2>/dev/null)
    awk -v ours="$(awk '/Requests\/sec/ {print $2}' <<<"$ours")" -v p99="$(awk '$1 == "99%" {print $2}' <<<"$ours")" \
        -v control="$(awk '/^tps/ {print $3}' <<<"$control")" \
        'BEGIN {printf "executes/s %.0f (p99 %s)  pgbench %.0f  ratio %.2f\n", ours, p99, control, ours / control}'
    psql -q "$DATABASE_URL" -c "DELETE FROM outbox o WHERE NOT EXISTS (SELECT 1 FROM workflow_runs r WHERE r.run_id = o.run_id)"
done
rm -f "$LUA"
