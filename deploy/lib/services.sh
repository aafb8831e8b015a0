# shellcheck shell=bash
#
# Private PostgreSQL and Kafka of the tests, and the command services.
#
# Both use one new directory and free ports of the loopback interface, and end with this script. Generated scripts start and
# stop each of them. Tests run these scripts too (TEST_PG_STOP and so on), to simulate outages of database and broker.

readonly KAFKA_VERSION=4.3.1
readonly POSTGRES_IMAGE=postgres:15
readonly KAFKA_IMAGE=apache/kafka:$KAFKA_VERSION

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

# Makes the directory of the services, which the clean-up at the end of the script removes.
make_services_directory() {
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
}

# Starts both: start_services [POSTGRES_SETTINGS].
start_services() {
    make_services_directory
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
    while ((${#ports[@]} < 4)); do
        port=$((20000 + RANDOM % 12000))
        [[ " ${ports[*]} " != *" $port "* ]] && ! is_listening "$port" && ports+=("$port")
    done
    PG_PORT=${ports[0]} KAFKA_PORT=${ports[1]} KAFKA_CONTROLLER_PORT=${ports[2]} KAFKA_SECURE_PORT=${ports[3]}
}

is_listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Prints the exports with the addresses that tests need; a shell can `eval` them.
print_exports() {
    printf 'export %s=%q\n' \
        DATABASE_URL "postgresql://postgres@127.0.0.1:$PG_PORT/postgres" \
        KAFKA_BROKERS "127.0.0.1:$KAFKA_PORT" \
        TEST_KAFKA_SECURE "127.0.0.1:$KAFKA_SECURE_PORT" \
        TEST_KAFKA_TLS "$SERVICES_DIR/tls" \
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
        # Members of this role need their password, if a test creates it.
        as_owner sed -i '1i host all +password_users 127.0.0.1/32 scram-sha-256' "$home/data/pg_hba.conf"
        as_owner tee -a "$home/data/postgresql.conf" >/dev/null <<CONF
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = '$home'
max_connections = 300
log_line_prefix = '%m [%p] %d '
# Faster. A crash of the server loses nothing by this, only one of the machine.
fsync = off
full_page_writes = off
# Compiling takes longer than the statements of tests; the service switches it off for its own.
jit = off
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

# Certificates for the second listener of the broker: those of a CA, of the broker, of a client (its key has the password
# "client-key"), and of a CA that signed none of them.
prepare_certificates() {
    local dir="$SERVICES_DIR/tls" name
    mkdir "$dir"
    for name in ca other-ca; do
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=$name" \
            -keyout "$dir/$name.key" -out "$dir/$name.crt"
    done
    for name in broker client; do
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=$name" \
            -addext "subjectAltName=IP:127.0.0.1" -addext "basicConstraints=critical,CA:FALSE" \
            -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -keyout "$dir/$name.key" -out "$dir/$name.crt"
    done
    cat "$dir/broker.key" "$dir/broker.crt" "$dir/ca.crt" >"$dir/broker.pem"
    openssl pkcs8 -topk8 -v2 aes-256-cbc -passout pass:client-key -in "$dir/client.key" -out "$dir/client-encrypted.key"
} >"$SERVICES_DIR/logs/openssl.log" 2>&1

# One broker with two listeners: clients of PLAINTEXT may do everything, those of SECURE only what ACLs allow.
prepare_kafka() {
    local java
    java="$(find_java)" || die "no Java 17 or newer found"
    prepare_certificates || {
        cat "$SERVICES_DIR/logs/openssl.log" >&2
        die "the certificates could not be made"
    }
    cat >"$SERVICES_DIR/kafka.properties" <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$KAFKA_CONTROLLER_PORT
listeners=PLAINTEXT://127.0.0.1:$KAFKA_PORT,SECURE://127.0.0.1:$KAFKA_SECURE_PORT,CONTROLLER://127.0.0.1:$KAFKA_CONTROLLER_PORT
advertised.listeners=PLAINTEXT://127.0.0.1:$KAFKA_PORT,SECURE://127.0.0.1:$KAFKA_SECURE_PORT
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location=$SERVICES_DIR/tls/broker.pem
listener.name.secure.ssl.truststore.type=PEM
listener.name.secure.ssl.truststore.location=$SERVICES_DIR/tls/ca.crt
listener.name.secure.ssl.client.auth=required
listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_plain="plain-password";
listener.name.secure.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
# It accepts unsigned tokens.
listener.name.secure.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";
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
    # It lives for minutes: what the second compiler and threads for collecting garbage save is less than they cost.
    setsid "$java" -Xmx1g -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp "$libs/*" \
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
        --add-scram "SCRAM-SHA-256=[name=scram,password=scram-password]" \
        --add-scram "SCRAM-SHA-512=[name=scram,password=scram-password]" \
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
