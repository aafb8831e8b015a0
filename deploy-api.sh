#!/usr/bin/env bash
#
# Starts, tests and stops the service. `./deploy-api.sh` without arguments lists the commands.
#
# Messages of this script go to stderr. stdout has only the output of the command
# (of cargo and of the service, the exports of `services`).

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly ROOT
cd "$ROOT"

readonly KAFKA_VERSION=4.3.1
readonly SCHEMATHESIS_VERSION=4.32.5
# Generators of clients from the OpenAPI document, and their dependencies.
readonly CLIENTS_BY_NPM=(openapi-typescript@7.13.0 openapi-fetch@0.17.0 typescript@5.9.3 @types/node@20.19.43)
readonly CLIENTS_BY_PIP=(openapi-python-client==0.29.1)
readonly POSTGRES_IMAGE=postgres:15
readonly KAFKA_IMAGE=apache/kafka:$KAFKA_VERSION

# Cache that survives `git clean` and is shared by several checkouts: jars of Kafka, the fuzzer, client generators.
CACHE="${WORKFLOW_API_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/workflow-api}"
readonly CACHE

# Data of `workflow-api dev`: its database, logs, pid file.
readonly DEV_DIR="$ROOT/.dev"
readonly DEV_LOG="$DEV_DIR/logs/dev.log"
readonly DEV_PID_FILE="$DEV_DIR/dev.pid"
readonly DEV_READY_FILE="$DEV_DIR/ready"
readonly DEV_PROCESSES_FILE="$DEV_DIR/processes"

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

# ---------------------------------------------------------------------------------------------------------------------
# Required packages and programs

# Each `need_*` function adds to this list; `install_missing` installs the whole list, or does nothing if it is empty.
MISSING=()

have() { command -v "$1" >/dev/null 2>&1; }

need_build_tools() {
    have cc || MISSING+=(gcc libc6-dev)
    have c++ || MISSING+=(g++)
    have make || MISSING+=(make)
    have pkg-config || MISSING+=(pkg-config)
    if ! have pkg-config || ! pkg-config --exists openssl; then
        MISSING+=(libssl-dev)
    fi
}

# Prometheus with promtool, and Alertmanager with amtool.
need_prometheus() {
    have promtool || MISSING+=(prometheus)
    have amtool || MISSING+=(prometheus-alertmanager)
}

need_postgres_server() { find_postgres_bin >/dev/null || MISSING+=(postgresql); }

need_kafka() {
    find_java >/dev/null || MISSING+=("$(java_package)")
    if [[ ! -d $(kafka_libs) ]]; then
        have mvn || MISSING+=(maven)
    fi
}

# Debian and Ubuntu releases have different versions of Java; Kafka 4 needs 17 or newer.
java_package() {
    local package
    for package in openjdk-17-jre-headless openjdk-21-jre-headless openjdk-25-jre-headless; do
        if have apt-cache && apt-cache show "$package" >/dev/null 2>&1; then
            echo "$package"
            return
        fi
    done
    echo default-jre-headless
}

# A browser for the tests of the documentation pages. Ubuntu has Chromium only as a snap; CHROMIUM names another one.
need_chromium() {
    [[ -n ${CHROMIUM:-} ]] || have chromium || have chromium-browser || have google-chrome || MISSING+=(chromium)
}

install_missing() {
    ((${#MISSING[@]})) || return 0
    local line="apt-get update && apt-get install -y --no-install-recommends ${MISSING[*]}"
    have apt-get || die "these packages are missing (their Debian names), and there is no apt-get here: ${MISSING[*]}"

    local as_root=()
    if ((EUID != 0)); then
        have sudo || die "system packages are missing; run this as root, then start again: $line"
        as_root=(sudo)
        # Without a terminal a password cannot be entered: fail at once instead of waiting for it.
        [[ -t 0 ]] || as_root+=(-n)
    fi
    step "Installing system packages${as_root[0]:+ with sudo}: ${MISSING[*]}"
    as_root+=(env DEBIAN_FRONTEND=noninteractive)
    {
        "${as_root[@]}" apt-get update -q &&
            keep_machine_free_of_a_default_cluster "${as_root[@]}" &&
            keep_machine_free_of_monitoring "${as_root[@]}" &&
            "${as_root[@]}" apt-get install -q -y --no-install-recommends "${MISSING[@]}"
    } >&2 || die "installing failed; run this as root, then start again: $line"
    MISSING=()
}

# Debian's PostgreSQL package starts a server on port 5432 when it is installed. Only the programs are needed.
keep_machine_free_of_a_default_cluster() {
    [[ " ${MISSING[*]} " == *" postgresql "* ]] || return 0
    local directory=/etc/postgresql-common/createcluster.d
    "$@" mkdir -p "$directory"
    echo 'create_main_cluster = false' | "$@" tee "$directory/workflow-api.conf" >/dev/null
}

# So do the packages of Prometheus and Alertmanager, on ports 9090 and 9093. A unit that is a link to /dev/null is masked.
keep_machine_free_of_monitoring() {
    local unit
    for unit in prometheus prometheus-alertmanager; do
        [[ " ${MISSING[*]} " == *" $unit "* && ! -e /etc/systemd/system/$unit.service ]] || continue
        note "The service $unit stays off; to use it here: systemctl unmask $unit"
        "$@" mkdir -p /etc/systemd/system
        "$@" ln -s /dev/null "/etc/systemd/system/$unit.service"
    done
}

# rustup installs cargo in a directory that is not on the PATH of a shell started before.
ensure_cargo() {
    have cargo || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    have cargo || die "no Rust toolchain found; install one, then start again:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
}

# Prints the directory of the newest PostgreSQL server programs.
find_postgres_bin() {
    local directory
    while read -r directory; do
        if [[ -x $directory/initdb && -x $directory/postgres ]]; then
            echo "$directory"
            return
        fi
    done < <(
        printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV
        have initdb && dirname "$(readlink -f "$(command -v initdb)")"
    )
    return 1
}

# Prints a java of at least version 17, which need not be the one on the PATH.
find_java() {
    local java major
    for java in "${JAVA_HOME:+$JAVA_HOME/bin/java}" "$(command -v java || true)" /usr/lib/jvm/*/bin/java; do
        [[ -x $java ]] || continue
        major="$("$java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p;q')"
        if ((${major:-0} >= 17)); then
            echo "$java"
            return
        fi
    done
    return 1
}

# ---------------------------------------------------------------------------------------------------------------------
# quickstart and stop

# Prints the pid of this checkout's running `workflow-api dev`. A pid file can outlive its process, and the pid can be
# reused, so program, sub-command and directory of the process are checked.
dev_pid() {
    local pid
    [[ -r $DEV_PID_FILE ]] && pid="$(<"$DEV_PID_FILE")" || return 1
    [[ $pid =~ ^[0-9]+$ ]] || return 1
    is_our_dev_process "$pid" && echo "$pid"
}

is_our_dev_process() {
    local program cmdline
    [[ $(readlink "/proc/$1/cwd" 2>/dev/null) == "$ROOT" ]] || return 1
    # After a rebuild while it runs, the kernel adds " (deleted)".
    program="$(readlink "/proc/$1/exe" 2>/dev/null)" || return 1
    program="${program% (deleted)}"
    [[ ${program##*/} == workflow-api ]] || return 1
    cmdline="$(tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null)"
    [[ " $cmdline " == *" dev "* ]]
}

quickstart() {
    local pid lock binary
    if pid="$(dev_pid)"; then
        show_running "$pid"
        return
    fi

    mkdir -p "$DEV_DIR/logs"
    exec {lock}>"$DEV_DIR/quickstart.lock"
    flock -n "$lock" || die "another quickstart of this checkout is running"

    ensure_cargo
    need_build_tools
    install_missing
    build_quickstart
    binary="$(target_directory)/debug/workflow-api"
    [[ -x $binary ]] || die "the build did not produce $binary"

    rm -f "$DEV_READY_FILE"
    step "Starting workflow-api dev (its output: $DEV_LOG)"
    # Created here, because tail may start before the redirection of the background process.
    : >"$DEV_LOG"
    # In its own session: closing this terminal, or Ctrl-C in it, does not stop it.
    setsid nohup "$binary" dev --data-dir .dev </dev/null >"$DEV_LOG" 2>&1 {lock}>&- &
    pid=$!
    # Until it is ready, Ctrl-C cancels the start.
    trap 'echo >&2; step "Interrupted: stopping workflow-api dev"; end_process "$pid"; exit 130' INT TERM
    follow_until_ready "$pid"
    trap - INT TERM
    step "Ready, and running in the background. Stop it with: ./deploy-api.sh stop"
}

show_running() {
    step "Already running (pid $1)"
    if [[ -e $DEV_READY_FILE ]]; then
        cat "$DEV_READY_FILE"
    else
        follow_until_ready "$1"
    fi
    note "To restart with the current sources: ./deploy-api.sh stop && ./deploy-api.sh quickstart"
}

# The development profile builds faster, and a first run does not need an optimised program.
build_quickstart() {
    step "Building (the first time takes some minutes, later seconds)"
    cargo build --locked --features embedded || die "the build failed; its messages are above"
}

target_directory() {
    cargo metadata --locked --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'
}

# Shows the output of the dev process until its first run has ended.
follow_until_ready() {
    local pid=$1 tail_pid
    tail -n +1 -s 0.1 -f "$DEV_LOG" 2>/dev/null &
    tail_pid=$!
    while [[ ! -e $DEV_READY_FILE ]] && is_alive "$pid"; do
        sleep 0.05
    done
    # For tail to print the last lines.
    sleep 0.3
    kill "$tail_pid" 2>/dev/null || true
    wait "$tail_pid" 2>/dev/null || true
    if [[ ! -e $DEV_READY_FILE ]]; then
        die "workflow-api dev ended before it was ready. Its output is above and in $DEV_LOG; the logs of its processes are in $DEV_DIR/logs/"
    fi
}

# Sends SIGTERM and waits up to 45 s: API and executor finish their work within 28 s.
end_process() {
    kill -TERM "$1" 2>/dev/null || return 0
    wait_for_end "$1" 45
}

# Waits for the end of a process: wait_for_end PID SECONDS.
wait_for_end() {
    local pid=$1 deadline=$((SECONDS + $2))
    while is_alive "$pid"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# A zombie counts as ended; its parent has not waited for it yet.
is_alive() {
    local state
    state="$(sed -n 's/^State:[[:space:]]*\([A-Z]\).*/\1/p' "/proc/$1/status" 2>/dev/null)" || return 1
    [[ -n $state && $state != Z ]]
}

# Ends the processes that a killed dev process has left. Each line of the file has pid, start time in ticks since boot, and
# name; pid and start time together identify the process. For PostgreSQL SIGINT is a fast shutdown.
end_orphans() {
    local pid started name stat fields found=false
    [[ -r $DEV_PROCESSES_FILE ]] || return 1
    while read -r pid started name; do
        [[ $pid =~ ^[0-9]+$ && -n $name && -r /proc/$pid/stat ]] || continue
        stat="$(cat "/proc/$pid/stat" 2>/dev/null)" || continue
        read -ra fields <<<"${stat##*) }"
        [[ ${fields[19]} == "$started" ]] || continue
        is_alive "$pid" || continue
        found=true
        note "Stopping $name (pid $pid); its supervisor was killed"
        if [[ $name == postgres ]]; then kill -INT "$pid"; else kill -TERM "$pid"; fi 2>/dev/null || true
        wait_for_end "$pid" 5 || kill -KILL "$pid" 2>/dev/null || true
    done < <(sort -k 3 "$DEV_PROCESSES_FILE" | sed -n '/ postgres$/!p'; grep ' postgres$' "$DEV_PROCESSES_FILE")
    rm -f "$DEV_PROCESSES_FILE" "$DEV_PID_FILE" "$DEV_READY_FILE"
    [[ $found == true ]]
}

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

# Runs compose in the spelling that is installed.
compose() {
    if docker compose version >/dev/null 2>&1; then
        docker compose "$@"
    else
        docker-compose "$@"
    fi
}

compose_services_run() {
    docker_works || return 1
    docker compose version >/dev/null 2>&1 || have docker-compose || return 1
    # Stopping services needs no settings, but compose requires the file.
    [[ -e ${API_ENV_FILE:-.env.api} ]] || export API_ENV_FILE=.env.api.example
    [[ -n $(compose --profile api ps -q 2>/dev/null) ]]
}

docker_works() { have docker && timeout 10 docker info >/dev/null 2>&1; }

# ---------------------------------------------------------------------------------------------------------------------
# Private PostgreSQL and Kafka
#
# Both use one new directory and free ports of the loopback interface, and end with this script. Generated scripts start and
# stop each of them. Tests run these scripts too (TEST_PG_STOP and so on), to simulate outages of database and broker.

SERVICES_DIR=""
ENV_FILE=""
CHILD_GROUP=""

# Removes everything, however the script ends. It prints nothing, so that the last lines are those of cargo test.
# shellcheck disable=SC2317  # a trap calls it
clean_up() {
    local status=$?
    trap - EXIT
    # Another Ctrl-C must not interrupt the clean-up.
    trap '' INT TERM HUP
    if [[ -n $CHILD_GROUP ]]; then
        kill -TERM -- "-$CHILD_GROUP" 2>/dev/null || true
    fi
    if [[ -n $ENV_FILE ]]; then
        rm -f "$ENV_FILE"
    fi
    if [[ -n $SERVICES_DIR ]]; then
        local script
        for script in kafka-stop pg-stop remove; do
            [[ -x $SERVICES_DIR/$script ]] || continue
            "$SERVICES_DIR/$script" now >>"$SERVICES_DIR/logs/clean-up.log" 2>&1 || true
        done
        keep_logs_of_a_failure "$status"
        rm -rf "$SERVICES_DIR"
    fi
    exit "$status"
}

# shellcheck disable=SC2317  # clean_up calls it
keep_logs_of_a_failure() {
    # From 129 on the script was ended by a signal, so the logs are not needed.
    (($1 > 0 && $1 < 128)) || return 0
    rm -rf "$CACHE/last-failure"
    cp -R "$SERVICES_DIR/logs" "$CACHE/last-failure" 2>/dev/null || true
}

# Starts both: start_services [POSTGRES_SETTINGS].
start_services() {
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM

    # Always under /tmp, not TMPDIR: the path of a Unix socket may have at most 107 bytes.
    SERVICES_DIR="$(mktemp -d /tmp/workflow-api-services.XXXXXX)"
    # The user account of PostgreSQL needs access to the directory.
    chmod 711 "$SERVICES_DIR"
    mkdir -p "$SERVICES_DIR/logs" "$CACHE"
    choose_free_ports

    if [[ ${WORKFLOW_API_TEST_DOCKER:-} == 1 ]]; then
        docker_works || die "WORKFLOW_API_TEST_DOCKER=1, but docker does not work here"
        write_docker_scripts
    else
        need_postgres_server
        need_kafka
        install_missing
        fetch_kafka
        prepare_postgres "${1:-}"
        prepare_kafka
    fi
    step "Starting PostgreSQL on port $PG_PORT"
    "$SERVICES_DIR/pg-start" >&2
    step "Starting Kafka on port $KAFKA_PORT"
    "$SERVICES_DIR/kafka-start" >&2
}

# Chooses free ports below the range of outgoing connections, so that a service that a test stops and starts again finds
# its port free.
choose_free_ports() {
    local ports=() port
    while ((${#ports[@]} < 3)); do
        port=$((20000 + RANDOM % 12000))
        [[ " ${ports[*]} " != *" $port "* ]] && ! is_listening "$port" && ports+=("$port")
    done
    PG_PORT=${ports[0]} KAFKA_PORT=${ports[1]} KAFKA_CONTROLLER_PORT=${ports[2]}
}

is_listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Prints the exports with the addresses that tests need; a shell can `eval` them.
print_exports() {
    printf 'export %s=%q\n' \
        DATABASE_URL "postgresql://postgres@127.0.0.1:$PG_PORT/postgres" \
        KAFKA_BROKERS "127.0.0.1:$KAFKA_PORT" \
        TEST_PG_START "$SERVICES_DIR/pg-start" \
        TEST_PG_STOP "$SERVICES_DIR/pg-stop" \
        TEST_KAFKA_START "$SERVICES_DIR/kafka-start" \
        TEST_KAFKA_STOP "$SERVICES_DIR/kafka-stop"
}

# Writes a script with several names into the directory of the services. Tests and this script run it:
#   write_script "NAME NAME.." VARIABLE=VALUE.. <body
# The body has the variables, and in $called the name by which it was run.
write_script() {
    local names assignment name
    read -ra names <<<"$1"
    shift
    {
        # shellcheck disable=SC2016  # the generated script expands it
        printf '#!/usr/bin/env bash\n# Made by deploy-api.sh.\nset -euo pipefail\ncalled="${0##*/}"\n'
        for assignment in "$@"; do
            printf '%s=%q\n' "${assignment%%=*}" "${assignment#*=}"
        done
        cat
    } >"$SERVICES_DIR/${names[0]}"
    chmod 755 "$SERVICES_DIR/${names[0]}"
    for name in "${names[@]:1}"; do
        ln -s "${names[0]}" "$SERVICES_DIR/$name"
    done
}

# --- Installed PostgreSQL

prepare_postgres() {
    local bin as_user=""
    bin="$(find_postgres_bin)" || die "no PostgreSQL server programs found"
    mkdir "$SERVICES_DIR/postgres"
    # PostgreSQL refuses to run as root.
    if ((EUID == 0)); then
        as_user=postgres
        id "$as_user" >/dev/null 2>&1 || as_user=nobody
        chown "$as_user" "$SERVICES_DIR/postgres"
    fi
    # pg-start returns when connections are accepted. pg-stop is a fast shutdown; `pg-stop now` is a crash. Both do
    # nothing if the server is already in that state.
    write_script "pg-start pg-stop pg-init" "home=$SERVICES_DIR/postgres" "bin=$bin" "as_user=$as_user" "port=$PG_PORT" \
        "settings=${1:-}" <<'SCRIPT'
as_owner() {
    if [[ -n $as_user ]]; then runuser -u "$as_user" -- "$@"; else "$@"; fi
}
pg_ctl() { as_owner "$bin/pg_ctl" -D "$home/data" "$@"; }

cd "$home"
case $called in
    pg-init)
        as_owner "$bin/initdb" -D "$home/data" -U postgres --auth=trust -E UTF8 --locale=C.UTF-8 --no-sync
        as_owner tee -a "$home/data/postgresql.conf" >/dev/null <<CONF
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = '$home'
max_connections = 300
log_line_prefix = '%m [%p] %d '
# Faster. A crash of the server loses nothing by this, only one of the machine.
fsync = off
full_page_writes = off
$settings
CONF
        ;;
    pg-start)
        pg_ctl status >/dev/null || pg_ctl -l "$home/postgres.log" -w -t 60 start >/dev/null
        ;;
    pg-stop)
        mode=fast
        [[ ${1:-} != now ]] || mode=immediate
        ! pg_ctl status >/dev/null || pg_ctl -m "$mode" -w -t 60 stop >/dev/null
        ;;
esac
SCRIPT
    ln -s ../postgres/postgres.log "$SERVICES_DIR/logs/postgres.log"
    "$SERVICES_DIR/pg-init" >"$SERVICES_DIR/logs/initdb.log" 2>&1 || {
        cat "$SERVICES_DIR/logs/initdb.log" >&2
        die "initdb failed"
    }
}

# --- Apache Kafka by Maven

kafka_libs() { echo "$CACHE/kafka-$KAFKA_VERSION"; }

fetch_kafka() {
    local libs work
    libs="$(kafka_libs)"
    [[ ! -d $libs ]] || return 0
    step "Fetching Apache Kafka $KAFKA_VERSION from Maven Central into $libs"
    work="$(mktemp -d "$CACHE/.kafka.XXXXXX")"
    cat >"$work/pom.xml" <<POM
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>workflow-api</groupId><artifactId>test-kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$KAFKA_VERSION</version></dependency>
    <!-- Kafka's own log, to stderr. -->
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
POM
    if ! mvn -B -q -ntp -C -f "$work/pom.xml" \
        org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
        -DoutputDirectory="$work/libs" >&2; then
        rm -rf "$work"
        die "Maven could not fetch Apache Kafka"
    fi
    # Renamed at the end, so that an interrupted download does not look complete.
    mv -T "$work/libs" "$libs" 2>/dev/null || [[ -d $libs ]]
    rm -rf "$work"
}

prepare_kafka() {
    local java
    java="$(find_java)" || die "no Java 17 or newer found"
    cat >"$SERVICES_DIR/kafka.properties" <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$KAFKA_CONTROLLER_PORT
listeners=PLAINTEXT://127.0.0.1:$KAFKA_PORT,CONTROLLER://127.0.0.1:$KAFKA_CONTROLLER_PORT
advertised.listeners=PLAINTEXT://127.0.0.1:$KAFKA_PORT
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$SERVICES_DIR/kafka
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
# After a crash the broker can register again only when its old session has expired; the default is 9 s.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
CONF
    # kafka-start returns when connections are accepted. kafka-stop is a controlled shutdown; `kafka-stop now` is a crash.
    # Both do nothing if the broker is already in that state.
    write_script "kafka-start kafka-stop" "dir=$SERVICES_DIR" "java=$java" "libs=$(kafka_libs)" <<'SCRIPT'
log="$dir/logs/kafka.log"

# Sets pid. A reused pid has another command line, a zombie has none.
running() {
    pid="$(cat "$dir/kafka.pid" 2>/dev/null)" &&
        tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$dir/kafka.properties"
}

start() {
    touch "$log"
    local seen
    seen="$(wc -c <"$log")"
    setsid "$java" -Xmx1g -cp "$libs/*" \
        -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
        -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info \
        -Dorg.slf4j.simpleLogger.showDateTime=true \
        -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS \
        kafka.Kafka "$dir/kafka.properties" </dev/null >>"$log" 2>&1 &
    pid=$!
    echo "$pid" >"$dir/kafka.pid"
    for ((i = 0; i < 600; i++)); do
        # The port may be open earlier; the broker writes this line when it accepts requests.
        if grep -q 'Kafka Server started' < <(tail -c "+$((seen + 1))" "$log"); then return; fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    echo "Kafka did not start:" >&2
    tail -n 20 "$log" >&2
    return 1
}

stop() {
    kill -s "$1" "$pid"
    for ((i = 0; i < 600; i++)); do
        running || return 0
        sleep 0.1
    done
    echo "Kafka did not end within 60 s" >&2
    return 1
}

signal=TERM
[[ ${1:-} != now ]] || signal=KILL
case $called in
    kafka-start) running || start ;;
    kafka-stop) ! running || stop "$signal" ;;
esac 2>&1
SCRIPT
    "$java" -cp "$(kafka_libs)/*" -Dorg.slf4j.simpleLogger.defaultLogLevel=error kafka.tools.StorageTool format \
        -t MkU3OEVBNTcwNTJENDM2Qg -c "$SERVICES_DIR/kafka.properties" >"$SERVICES_DIR/logs/kafka-format.log" 2>&1 || {
        cat "$SERVICES_DIR/logs/kafka-format.log" >&2
        die "formatting Kafka's storage failed"
    }
}

# --- Both by Docker

write_docker_scripts() {
    local pg="workflow-api-test-pg-$$" kafka="workflow-api-test-kafka-$$"
    step "Creating containers $pg and $kafka"
    docker create --name "$pg" -p "127.0.0.1:$PG_PORT:5432" -e POSTGRES_HOST_AUTH_METHOD=trust \
        "$POSTGRES_IMAGE" -c max_connections=300 >/dev/null
    docker create --name "$kafka" -p "127.0.0.1:$KAFKA_PORT:$KAFKA_PORT" \
        -e KAFKA_NODE_ID=1 \
        -e KAFKA_PROCESS_ROLES=broker,controller \
        -e KAFKA_LISTENERS="HOST://:$KAFKA_PORT,CONTROLLER://:9093" \
        -e KAFKA_ADVERTISED_LISTENERS="HOST://127.0.0.1:$KAFKA_PORT" \
        -e KAFKA_INTER_BROKER_LISTENER_NAME=HOST \
        -e KAFKA_CONTROLLER_LISTENER_NAMES=CONTROLLER \
        -e KAFKA_LISTENER_SECURITY_PROTOCOL_MAP=HOST:PLAINTEXT,CONTROLLER:PLAINTEXT \
        -e KAFKA_CONTROLLER_QUORUM_VOTERS=1@localhost:9093 \
        -e KAFKA_AUTO_CREATE_TOPICS_ENABLE=false \
        -e KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS=0 \
        -e KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR=1 \
        -e KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR=1 \
        -e KAFKA_TRANSACTION_STATE_LOG_MIN_ISR=1 \
        "$KAFKA_IMAGE" >/dev/null

    # PostgreSQL is checked over TCP: while the image initialises its database, it listens on the Unix socket only.
    write_script "pg-start pg-stop kafka-start kafka-stop remove" "pg=$pg" "kafka=$kafka" "kafka_port=$KAFKA_PORT" <<'SCRIPT'
start() {
    local name=$1
    shift
    docker start "$name" >/dev/null
    for ((i = 0; i < 120; i++)); do
        ! docker exec "$name" "$@" >/dev/null 2>&1 || return 0
        sleep 0.5
    done
    docker logs --tail 20 "$name" >&2
    return 1
}

stop() {
    local how=(stop -t 30)
    [[ $2 != now ]] || how=(kill)
    docker "${how[@]}" "$1" >/dev/null 2>&1 || true
}

case $called in
    pg-start) start "$pg" pg_isready -q -h 127.0.0.1 -U postgres ;;
    pg-stop) stop "$pg" "${1:-}" ;;
    kafka-start) start "$kafka" /opt/kafka/bin/kafka-broker-api-versions.sh --bootstrap-server "127.0.0.1:$kafka_port" ;;
    kafka-stop) stop "$kafka" "${1:-}" ;;
    remove) docker rm -f -v "$pg" "$kafka" ;;
esac
SCRIPT
}

# ---------------------------------------------------------------------------------------------------------------------
# services, test, fuzz and clients

services() {
    local env_file=""
    while (($#)); do
        case $1 in
            --env-file)
                env_file="${2:?--env-file needs a file name}"
                shift 2
                ;;
            *) die "services: unknown argument $1" ;;
        esac
    done
    start_services
    print_exports
    if [[ -n $env_file ]]; then
        # Renamed at the end: a reader that waits for the file finds it complete.
        print_exports >"$env_file.part"
        mv "$env_file.part" "$env_file"
        ENV_FILE="$env_file"
    fi
    step "Running until Ctrl-C (logs: $SERVICES_DIR/logs)"
    setsid sleep infinity &
    CHILD_GROUP=$!
    wait "$CHILD_GROUP"
}

run_tests() {
    need_build_tools
    need_chromium
    install_missing
    ensure_cargo
    start_services
    eval "$(print_exports)"
    # The tests mostly wait, so more of them run at a time than there are processors. Those of tests/process start
    # programs and stop services: they run last, with the default number of threads.
    local suites
    suites="RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc) * 3))} cargo test --locked --all-features --lib --bins"
    suites+=" --test architecture --test it && cargo test --locked --all-features --test process"
    if (($#)); then suites='cargo test --locked --all-features "$@"'; fi
    step "Running the tests (logs of the services after a failure: $CACHE/last-failure)"
    # In its own process group, in the background: a signal is handled at once instead of after the tests, and the clean-up
    # ends all processes that the tests have started.
    setsid bash -c "$suites" cargo "$@" &
    CHILD_GROUP=$!
    wait "$CHILD_GROUP"
}

fuzz() {
    need_build_tools
    need_python
    install_missing
    ensure_cargo
    local fuzzer
    fuzzer="$CACHE/schemathesis-$SCHEMATHESIS_VERSION"
    fetch_fuzzer "$fuzzer"
    start_program
    # In CI the same requests each time; elsewhere new ones, which their seed repeats.
    local seed cases=(--generation-deterministic)
    if [[ ${CI:-} != true ]]; then
        seed="${WORKFLOW_API_TEST_SEED:-$((RANDOM << 15 | RANDOM))}"
        step "WORKFLOW_API_TEST_SEED=$seed repeats this"
        cases=(--seed "$seed" --generation-database none)
    fi
    # One worker: CPython 3.11 fails sometimes when several threads parse Python.
    "$fuzzer/bin/schemathesis" --config-file .ci/schemathesis.toml run "$PROGRAM_URL/openapi.json" \
        --workers 1 --max-examples 30 --no-color --continue-on-failure "${cases[@]}" "$@"
}

bench() {
    [[ ${WORKFLOW_API_TEST_DOCKER:-} != 1 ]] || die "bench measures processes of this host, not containers"
    need_build_tools
    install_missing
    ensure_cargo
    local program="${PROGRAM:-}" suite=(cargo bench --locked --bench suite) eighth_of_memory
    step "Building the benchmarks"
    "${suite[@]}" --no-run
    if [[ -z $program ]]; then
        step "Building the service"
        cargo build --locked --release
        program="$(target_directory)/release/workflow-api"
    fi
    eighth_of_memory="$(awk '/^MemTotal/ {printf "%dMB", $2 / 8192}' /proc/meminfo)"
    start_services "fsync = on
synchronous_commit = on
full_page_writes = on
shared_buffers = $eighth_of_memory
max_wal_size = 8GB"
    # The copy stays as it is: cargo builds the same program with other features for the benchmarks.
    cp "$program" "$SERVICES_DIR/workflow-api"
    eval "$(print_exports)"
    step "Measuring (results also in $(target_directory)/bench)"
    # In its own process group, as the tests.
    PATH="$(find_postgres_bin):$PATH" PROGRAM="$SERVICES_DIR/workflow-api" setsid "${suite[@]}" -- "$@" &
    CHILD_GROUP=$!
    wait "$CHILD_GROUP"
}

clients() {
    need_build_tools
    need_python
    need_node
    install_missing
    ensure_cargo
    local tools run
    tools="$CACHE/clients-$(printf '%s\n' "${CLIENTS_BY_NPM[@]}" "${CLIENTS_BY_PIP[@]}" | cksum | cut -d' ' -f1)"
    fetch_client_generators "$tools"
    start_program
    # In a folder below the tools, so that node finds its packages.
    run="$(mktemp -d "$tools/run.XXXXXX")"
    generate_and_run_clients "$tools" "$run" || {
        rm -rf "$run"
        die "a generated client has failed"
    }
    rm -rf "$run"
}

generate_and_run_clients() {
    local tools=$1 run=$2 bin="$1/node_modules/.bin"
    step "Client in TypeScript: generate, compile, run"
    "$bin/openapi-typescript" "$PROGRAM_URL/openapi.json" -o "$run/api.d.ts" >&2 &&
        cp tests/clients/main_job.ts "$run" &&
        "$bin/tsc" --strict --target es2022 --module nodenext --moduleResolution nodenext --outDir "$run" \
            --typeRoots "$tools/node_modules/@types" --types node \
            --skipLibCheck "$run/main_job.ts" &&
        node "$run/main_job.js" "$PROGRAM_URL" || return 1
    step "Client in Python: generate, run"
    PATH="$tools/python/bin:$PATH" openapi-python-client generate --url "$PROGRAM_URL/openapi.json" --meta none \
        --fail-on-warning --output-path "$run/api" >&2 &&
        PYTHONPATH="$run" "$tools/python/bin/python" tests/clients/main_job.py "$PROGRAM_URL"
}

# Builds the service and runs it with an executor on private services. Sets PROGRAM_URL, and MANAGEMENT_URL of the executor.
start_program() {
    local program="${PROGRAM:-}" port=8000 management=9464
    if [[ -z $program ]]; then
        step "Building the service"
        cargo build --locked --all-features
        program="$(target_directory)/debug/workflow-api"
    fi
    start_services
    eval "$(print_exports)"
    while is_listening "$port"; do port=$((20000 + RANDOM % 12000)); done
    while is_listening "$management"; do management=$((20000 + RANDOM % 12000)); done
    step "Running the service and an executor (logs after a failure: $CACHE/last-failure)"
    # In its own process group, which the clean-up ends.
    # shellcheck disable=SC2016  # the inner shell expands it
    API_HOST=127.0.0.1 API_PORT="$port" MANAGEMENT_PORT="$management" EGRESS_ALLOW=127.0.0.1 \
        SHUTDOWN_NOTICE_SECS=0 setsid bash -c '
        "$0" serve >"$1/serve.log" 2>&1 &
        "$0" executor >"$1/executor.log" 2>&1 &
        wait' "$program" "$SERVICES_DIR/logs" &
    CHILD_GROUP=$!
    local tries
    for ((tries = 150; tries > 0; tries--)); do
        ! is_ready "$port" || break
        sleep 0.2
    done
    ((tries)) || die "the service is not ready; see $CACHE/last-failure/serve.log"
    PROGRAM_URL="http://127.0.0.1:$port"
    # shellcheck disable=SC2034  # tests/monitoring/run uses it
    MANAGEMENT_URL="http://127.0.0.1:$management"
}

# Succeeds if the service is ready.
is_ready() {
    local status
    exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
    printf 'GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
    read -r status <&3
    exec 3>&-
    [[ $status == *" 200 "* ]]
} 2>/dev/null

# Python with venv, for the fuzzer.
need_python() {
    python3 -c 'import ensurepip' 2>/dev/null || MISSING+=(python3 python3-venv)
}

# node 20 or newer.
need_node() {
    have npm && node -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)' || MISSING+=(nodejs npm)
}

fetch_client_generators() {
    [[ -x $1/python/bin/openapi-python-client ]] && return
    step "Fetching the client generators into $1"
    rm -rf "$1"
    mkdir -p "$1"
    npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$1" "${CLIENTS_BY_NPM[@]}" >&2
    python3 -m venv "$1/python"
    "$1/python/bin/pip" install --quiet --disable-pip-version-check "${CLIENTS_BY_PIP[@]}" >&2
}

fetch_fuzzer() {
    [[ -x $1/bin/schemathesis ]] && return
    step "Fetching Schemathesis $SCHEMATHESIS_VERSION into $1"
    rm -rf "$1"
    mkdir -p "$CACHE"
    python3 -m venv "$1"
    "$1/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$SCHEMATHESIS_VERSION" >&2
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
