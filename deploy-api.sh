#!/usr/bin/env bash
#
# Deploys, operates and tests the service. `./deploy-api.sh` without arguments lists the commands. Their functions are in
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

To run the service:
  quickstart            build the service with its embedded parts, start it, run a first workflow
                        (needs a Rust toolchain; no Docker, PostgreSQL or Kafka)
  dev                   development with Docker: create .env.api if it is missing, build the image, start everything,
                        migrate, check health
  prod [--check] [--image IMAGE] [--plain-database] [--no-backup]
                        production with Docker and .env.api.production: check everything first (--check: only that),
                        back up before migrations, migrate, start. --image deploys an image instead of building one;
                        --plain-database accepts a database without TLS
  status                state and health of the services; fails if one is not healthy
  logs [--no-follow] [SERVICE..]
                        follow the log of the API, or of other services
  health                answers of /health and /health/ready; fails if one fails
  stop                  stop what quickstart started, and this project's compose services; data is kept

To look after the database (that of compose or, with DATABASE_URL in the environment, that one by programs of this host):
  migrate [up | status | down N [--yes]]
                        migrate the schema to the newest version, list migrations, or revert the last N
  backup [--to DIRECTORY] [--keep N] [--hook COMMAND]
                        dump the database into a new directory below backups or DIRECTORY, with a manifest; then run
                        COMMAND (its path is in $BACKUP) and delete all but the newest N backups; prints the path
  restore [--force] DIRECTORY | FILE
                        verify a backup and restore it in one transaction into an empty database (--force: replace
                        everything in it), compare the rows, migrate. API and executors must be stopped
  rollback [--dry-run] [--to IMAGE] [--keep-schema]
                        stop API and executors, back up, revert the migrations that the previous image does not have,
                        start that image. --dry-run prints the steps

To develop it:
  test [ARGS..]         run the whole test suite on a private PostgreSQL and a private Apache Kafka;
                        ARGS go to cargo test, e.g.  ./deploy-api.sh test --test it -- cancel
  fuzz [ARGS..]         run the service and test it against its OpenAPI document with the fuzzer Schemathesis;
                        ARGS go to Schemathesis, e.g.  ./deploy-api.sh fuzz --max-examples 200
  bench [NAME [ARGS..]] measure the release build against controls on a private PostgreSQL and Kafka (docs/performance.md):
                        execute, reads, runs, latency, overload, start; without NAME all of these, in a quarter of an
                        hour; also  bench scale [RUNS]  (10 million),  bench soak MINUTES,  bench webhooks  and
                        bench events
  clients               generate clients in TypeScript and Python from the OpenAPI document, and run a workflow with each
  services [--env-file FILE]
                        start only the PostgreSQL and Kafka of the tests, print their environment variables
                        (also into FILE), and run until Ctrl-C

Exit codes: 0 success, 1 failure, 2 wrong usage.

Environment:
  WORKFLOW_API_URL          address of the API for health, dev, prod and rollback (default: http://localhost:8000)
  DATABASE_URL              migrate, backup, restore: the database to use instead of compose's
  BACKUP_HOOK               default of backup --hook
  CARGO_TARGET_DIR          build directory of cargo (default: target)
  WORKFLOW_API_CACHE        cache of Kafka and test tools (default: ~/.cache/workflow-api)
  CHROMIUM                  browser of the tests (default: the installed Chromium or Chrome)
  WORKFLOW_API_TEST_SEED    seed of random tests and of fuzz (default: a new one, which is printed)
  PROGRAM                   bench, fuzz, clients: another binary of the service, which is not built then; migrate, backup
                            and restore with DATABASE_URL: the binary (default: the one on the PATH or built here)
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

# A wrong command line.
bad_usage() {
    printf 'error: %s; see: ./deploy-api.sh help\n' "$*" >&2
    exit 2
}
no_arguments() { (($# == 1)) || bad_usage "$1: unknown argument $2"; }
# Prints the value of an option: value_of OPTION [VALUE].
value_of() {
    [[ -n ${2:-} ]] || bad_usage "$1 needs a value"
    printf '%s' "$2"
}

# shellcheck source=deploy/lib/install.sh
source "$ROOT/deploy/lib/install.sh"
# shellcheck source=deploy/lib/quickstart.sh
source "$ROOT/deploy/lib/quickstart.sh"
# shellcheck source=deploy/lib/compose.sh
source "$ROOT/deploy/lib/compose.sh"
# shellcheck source=deploy/lib/database.sh
source "$ROOT/deploy/lib/database.sh"
# shellcheck source=deploy/lib/deployment.sh
source "$ROOT/deploy/lib/deployment.sh"
# shellcheck source=deploy/lib/preflight.sh
source "$ROOT/deploy/lib/preflight.sh"
# shellcheck source=deploy/lib/backup.sh
source "$ROOT/deploy/lib/backup.sh"
# shellcheck source=deploy/lib/restore.sh
source "$ROOT/deploy/lib/restore.sh"
# shellcheck source=deploy/lib/rollback.sh
source "$ROOT/deploy/lib/rollback.sh"
# shellcheck source=deploy/lib/services.sh
source "$ROOT/deploy/lib/services.sh"
# shellcheck source=deploy/lib/tests.sh
source "$ROOT/deploy/lib/tests.sh"

main() {
    local command="${1:-}"
    (($# == 0)) || shift
    case $command in
        quickstart) quickstart ;;
        dev) dev "$@" ;;
        prod) prod "$@" ;;
        status) status "$@" ;;
        logs) logs "$@" ;;
        migrate) migrate "$@" ;;
        health) health "$@" ;;
        stop) stop ;;
        backup) backup "$@" ;;
        restore) restore "$@" ;;
        rollback) rollback "$@" ;;
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
