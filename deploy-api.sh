#!/usr/bin/env bash
#
# Starts, tests and stops the service. `./deploy-api.sh` without arguments lists the commands. Their functions are in
# deploy/lib, by subject.
#
# Messages of this script go to stderr. stdout has only the output of the command
# (of cargo and of the service, the exports of `services`).

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly ROOT
cd "$ROOT"

# Cache that survives `git clean` and is shared by several checkouts: jars of Kafka, the fuzzer, client generators.
CACHE="${WORKFLOW_API_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/workflow-api}"
readonly CACHE

usage() {
    cat <<'USAGE'
Usage: ./deploy-api.sh COMMAND

  quickstart            build the service with its embedded parts, start it, run a first workflow
                        (needs a Rust toolchain; no Docker, PostgreSQL or Kafka)
  stop                  stop what quickstart started, and this project's compose services; data is kept
  test [ARGS..]         run the whole test suite on a private PostgreSQL and a private Apache Kafka;
                        ARGS go to cargo test, e.g.  ./deploy-api.sh test --test it -- cancel
  fuzz [ARGS..]         run the service and test it against its OpenAPI document with the fuzzer Schemathesis;
                        ARGS go to Schemathesis, e.g.  ./deploy-api.sh fuzz --max-examples 200
  bench [NAME [ARGS..]] measure the release build against controls on a private PostgreSQL and Kafka (docs/performance.md):
                        execute, reads, runs, latency, overload, start; without NAME all of these, in a quarter of an
                        hour; also  bench scale [RUNS]  (10 million) and  bench soak MINUTES
  clients               generate clients in TypeScript and Python from the OpenAPI document, and run a workflow with each
  services [--env-file FILE]
                        start only the PostgreSQL and Kafka of the tests, print their environment variables
                        (also into FILE), and run until Ctrl-C

Environment:
  CARGO_TARGET_DIR          build directory of cargo (default: target)
  WORKFLOW_API_CACHE        cache of Kafka and test tools (default: ~/.cache/workflow-api)
  CHROMIUM                  browser of the tests (default: the installed Chromium or Chrome)
  WORKFLOW_API_TEST_SEED    seed of random tests and of fuzz (default: a new one, which is printed)
  PROGRAM                   bench, fuzz, clients: another binary of the service, which is not built then
  BENCH_SETTINGS            bench: settings of the service ("API_WORKERS=1 LOG_LEVEL=INFO")
  WORKFLOW_API_TEST_DOCKER  1: test, fuzz, clients and services run PostgreSQL and Kafka in Docker
USAGE
}

step() { printf '==> %s\n' "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# shellcheck source=deploy/lib/install.sh
source "$ROOT/deploy/lib/install.sh"
# shellcheck source=deploy/lib/quickstart.sh
source "$ROOT/deploy/lib/quickstart.sh"
# shellcheck source=deploy/lib/compose.sh
source "$ROOT/deploy/lib/compose.sh"
# shellcheck source=deploy/lib/services.sh
source "$ROOT/deploy/lib/services.sh"
# shellcheck source=deploy/lib/tests.sh
source "$ROOT/deploy/lib/tests.sh"

stop() {
    local pid stopped=false
    if pid="$(dev_pid)"; then
        step "Stopping workflow-api dev (pid $pid)"
        end_process "$pid" || die "pid $pid has not ended within 45 s; see $DEV_LOG"
        note "Stopped. Its data stays in $DEV_DIR"
        stopped=true
    elif end_orphans; then
        stopped=true
    fi
    if compose_services_run; then
        step "Stopping this project's compose services (volumes are kept)"
        compose --profile api down >&2
        stopped=true
    fi
    [[ $stopped == true ]] || step "Nothing of this checkout is running"
}

main() {
    local command="${1:-}"
    (($# == 0)) || shift
    case $command in
        quickstart) quickstart ;;
        stop) stop ;;
        test) run_tests "$@" ;;
        fuzz) fuzz "$@" ;;
        bench) bench "$@" ;;
        clients) clients "$@" ;;
        services) services "$@" ;;
        help | -h | --help) usage ;;
        *)
            [[ -z $command ]] || printf 'error: unknown command: %s\n\n' "$command" >&2
            usage >&2
            exit 2
            ;;
    esac
}

# .ci/run sources this file for its functions. Otherwise the command runs here. `exit` is in the same block, so bash has read
# the whole script before it runs, and an edit meanwhile does no harm.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    main "$@"
    exit
fi
