#!/usr/bin/env bash
#
# What whole runs cost: API, executor, agent, PostgreSQL and Kafka on this machine. Needs wrk, pgbench, psql, jq, bc, a
# release build, DATABASE_URL and KAFKA_BROKERS (`./deploy-api.sh services` starts both and prints them).
#
#   latency     of one-step runs at 100 a second, from the acceptance to COMPLETED, by the rows' times
#   throughput  of one-step runs from 16 clients until the last one has ended, with monitoring updates and without;
#               the control is pgbench with what an execute alone inserts, in the same rounds
#   loop        of a thousand and of ten thousand iterations: time and transactions for each, memory of the executor
#   parked      ten thousand runs that wait for callbacks: memory of the executor
#
#   benches/runs.sh [SECONDS [ROUNDS]]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export SHUTDOWN_NOTICE_SECS=0

readonly SECONDS_EACH="${1:-6}" ROUNDS="${2:-3}" PROGRAM="${PROGRAM:-target/release/workflow-api}"
readonly DATABASE="bench_$$" PORT=8099 AGENT_PORT=8097
readonly API="http://127.0.0.1:$PORT/api/v1"
ADMIN_URL="${DATABASE_URL:?}"
export DATABASE_URL="${ADMIN_URL%/*}/$DATABASE" API_PORT="$PORT" API_HOST=127.0.0.1 API_WORKERS=2 LOG_LEVEL=WARNING
export EGRESS_ALLOW=127.0.0.1 KAFKA_GROUP_ID="bench-$$" KAFKA_EXECUTION_TOPIC="bench-$$"
export KAFKA_CANCELLATION_TOPIC="bench-$$-cancel" KAFKA_MONITORING_TOPIC="bench-$$-monitoring"
export KAFKA_DEAD_LETTER_TOPIC="bench-$$-dead"

LUA="$(mktemp --suffix=.lua)"
EXECUTOR_PID=""
psql -q "$ADMIN_URL" -c "CREATE DATABASE $DATABASE"
"$PROGRAM" serve &
PIDS=($!)
"$PROGRAM" demo-agent --port "$AGENT_PORT" >/dev/null &
PIDS+=($!)
clean_up() {
    kill "${PIDS[@]}" $EXECUTOR_PID || true
    wait || true
    rm -f "$LUA"
    psql -q "$ADMIN_URL" -c "DROP DATABASE $DATABASE WITH (FORCE)"
}
trap clean_up EXIT
until curl -fs "http://127.0.0.1:$PORT/health/ready" >/dev/null; do sleep 0.1; done

start_executor() { # a fresh one, with monitoring updates or without
    if [[ -n $EXECUTOR_PID ]]; then
        kill "$EXECUTOR_PID"
        wait "$EXECUTOR_PID" || true
    fi
    ENABLE_MONITORING_UPDATES="$1" "$PROGRAM" executor &
    EXECUTOR_PID=$!
    # Until it has its partitions.
    run_once "$STEP" '{"input_data":{"text":"hello"}}'
}

sql() { psql -Atq "$DATABASE_URL" -c "$1"; }
post() { curl -fs -H 'content-type: application/json' -d "$2" "$API/$1"; }
workflow() { post workflows "{\"name\":\"$1\",\"start_step\":\"a\",\"steps\":$2}" | jq -r .id; }
resident_mb() { awk '/VmRSS/ {printf "%.0f", $2 / 1024}' "/proc/$EXECUTOR_PID/status"; }
open_runs() { sql "SELECT count(*) FROM workflow_runs WHERE status IN ('PENDING', 'RUNNING')"; }
# Milliseconds that the processors of this machine were not idle.
busy_ms() { awk '/^cpu / {printf "%d", ($2 + $3 + $4 + $7 + $8) * 10}' /proc/stat; }
transactions() { sql "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"; }
wait_for_the_end() { until [[ $(open_runs) == 0 ]]; do sleep 0.2; done; }

run_once() {
    post "workflows/$1/execute" "$2" >/dev/null
    wait_for_the_end
}

load() { # executes: clients, seconds, pause of each client in ms
    cat >"$LUA" <<LUA_END
wrk.method = "POST"
wrk.body = '{"input_data":{"text":"hello"}}'
wrk.headers["content-type"] = "application/json"
if $3 > 0 then delay = function() return $3 end end
LUA_END
    local result
    result=$(wrk -t1 -c"$1" -d"$2s" -s "$LUA" "$API/workflows/$4/execute")
    ! grep -q 'Non-2xx' <<<"$result" || { echo "$result" >&2; exit 1; }
}

post agents "{\"name\":\"bench\",\"url\":\"http://127.0.0.1:$AGENT_PORT/upper\"}" >/dev/null
STEP=$(workflow step '{"a":{"id":"a","agent_name":"bench","input_mapping":{"text":"${workflow.input.text}"}}}')
LOOP=$(workflow loop '{"a":{"id":"a","type":"loop","loop_config":{"collection":"${workflow.input.items}",
    "loop_body":["b"]}},"b":{"id":"b","agent_name":"bench","input_mapping":{"text":"${loop.item}"}}}')
CALLBACK=$(workflow callback '{"a":{"id":"a","type":"callback"}}')

start_executor true
sql "TRUNCATE workflow_runs CASCADE" 2>/dev/null
load 10 $((SECONDS_EACH * 2)) 100 "$STEP"
wait_for_the_end
sql "SELECT format('latency: %s runs, %s a second, p50 %s ms, p99 %s ms', count(*),
         round(count(*) / extract(epoch FROM max(created_at) - min(created_at))),
         round(1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM completed_at - created_at))::numeric, 1),
         round(1000 * percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM completed_at - created_at))::numeric, 1))
     FROM workflow_runs WHERE status = 'COMPLETED'"
sql "TRUNCATE workflow_runs CASCADE" 2>/dev/null

for ((round = 1; round <= ROUNDS; round++)); do
    for updates in true false; do
        start_executor "$updates"
        busy=$(busy_ms) started=$(date +%s.%N)
        load 16 "$SECONDS_EACH" 0 "$STEP"
        wait_for_the_end
        ended=$(date +%s.%N) runs=$(sql "SELECT count(*) - 1 FROM workflow_runs WHERE status = 'COMPLETED'")
        busy=$(($(busy_ms) - busy))
        control=$(pgbench -n -c16 -j2 -T"$SECONDS_EACH" -f benches/execute.sql "$DATABASE_URL" 2>/dev/null | awk '/^tps/ {print $3}')
        awk -v runs="$runs" -v time="$(bc <<<"$ended - $started")" -v cores="$(nproc)" -v control="$control" \
            -v busy="$busy" -v updates="$updates" \
            'BEGIN {printf "throughput, updates %s: %.0f runs/s, %.0f a core, %.2f ms of CPU each; pgbench %.0f, ratio %.2f\n",
                updates, runs / time, runs / time / cores, busy / runs, control, runs / time / control}'
        sql "TRUNCATE workflow_runs, outbox CASCADE" 2>/dev/null
    done
done

for count in 1000 10000; do
    start_executor true
    sleep 1
    before=$(transactions)
    started=$(date +%s.%N)
    jq -n --argjson n "$count" '{input_data: {items: [range($n) | tostring]}}' >"$LUA"
    run_once "$LOOP" "@$LUA"
    ended=$(date +%s.%N)
    sleep 1 # The database counts transactions with a delay.
    awk -v n="$count" -v time="$(bc <<<"$ended - $started")" -v transactions="$(($(transactions) - before))" -v mb="$(resident_mb)" \
        'BEGIN {printf "loop of %d: %.2f ms and %.2f transactions an iteration, executor %d MB\n", n, 1000 * time / n, transactions / n, mb}'
done

start_executor true
sql "TRUNCATE workflow_runs CASCADE" 2>/dev/null
parked() { sql "SELECT count(*) FROM workflow_runs WHERE status = 'RUNNING' AND executor_id IS NULL AND wake_at IS NOT NULL"; }
started=$(date +%s.%N)
while (($(sql "SELECT count(*) FROM workflow_runs") < 10000)); do load 16 1 0 "$CALLBACK"; done
until [[ $(open_runs) == "$(parked)" ]]; do sleep 0.2; done
awk -v n="$(parked)" -v time="$(bc <<<"$(date +%s.%N) - $started")" -v mb="$(resident_mb)" \
    'BEGIN {printf "parked: %d runs after %.1f s, executor %d MB\n", n, time, mb}'
