# shellcheck shell=bash
#
# Deployment by compose: dev, prod, status, logs, migrate, health and stop.

dev() {
    no_arguments dev "$@"
    need_docker
    need_curl
    ENVIRONMENT=dev
    check_free_ports
    if [[ ! -e .env.api ]]; then
        step "Creating .env.api from .env.api.example"
        (umask 077 && cp .env.api.example .env.api)
    fi
    build_image
    start_infrastructure
    step "Migrating the database"
    migrate_or_die
    start_service
    record_deployment
    health
    step "Ready: $API_URL/docs"
}

# Ends the script if other processes have ports of the services; one message names them all.
check_free_ports() {
    local entry port service taken=()
    for entry in "${PUBLISHED_PORTS[@]}"; do
        read -r port service <<<"$entry"
        ! is_taken "$port" "$service" || taken+=("$port ($service)")
    done
    ((${#taken[@]} == 0)) ||
        die "port: in use by another process: ${taken[*]}; find it with: ss -ltnp, and stop it"
}

# Whether a process that is no container of the service listens on the port: is_taken PORT SERVICE.
is_taken() { is_listening "$1" && [[ -z $(states_of "$2" | awk '$2 == "running"') ]]; }

prod() {
    local image="" only_check=false backs_up=true
    ACCEPTS_PLAIN_DATABASE=false
    while (($#)); do
        case $1 in
            --image)
                image="$(value_of "$@")"
                shift
                ;;
            --check) only_check=true ;;
            --plain-database) ACCEPTS_PLAIN_DATABASE=true ;;
            --no-backup) backs_up=false ;;
            *) bad_usage "prod: unknown argument $1" ;;
        esac
        shift
    done
    need_docker
    need_curl
    ENVIRONMENT=prod
    [[ -r $PRODUCTION_SETTINGS ]] || die "$PRODUCTION_SETTINGS: does not exist or cannot be read; make it with:
    grep -vE '^(DATABASE_URL|KAFKA_BROKERS|EGRESS_ALLOW)=' .env.api.example > $PRODUCTION_SETTINGS
  then set JWT_SECRET, DATABASE_URL and CORS_ORIGINS in it (docs/operation.md)"
    if [[ -n $image ]]; then
        fetch_image "$image"
        IMAGE="$image"
    else
        build_image
    fi
    preflight
    [[ $only_check == false ]] || return 0
    start_infrastructure
    [[ $backs_up == false ]] || back_up_before_migrations
    step "Migrating the database (the previous release goes on serving)"
    migrate_or_die
    start_service
    record_deployment
    health
    step "Ready: $IMAGE. To go back: ./deploy-api.sh rollback"
}

migrate_or_die() {
    program migrate up || die "migrate: failed; its messages are above. API and executors were not started or replaced"
}

# Makes a backup if the database has a schema and migrations are missing.
back_up_before_migrations() {
    local status
    status="$(program migrate status 2>/dev/null || true)"
    if [[ $status == *applied* && $status == *missing* ]]; then
        step "Migrations are pending: making a backup first"
        backup
    fi
}

# Prints a line for each container. Fails unless everything runs and is healthy.
status() {
    no_arguments status "$@"
    local pid service states unhealthy=() found=false
    if pid="$(dev_pid)"; then
        found=true
        printf '%-28s %-10s %-10s %s\n' "workflow-api dev" running "$([[ -e $DEV_READY_FILE ]] && echo healthy || echo starting)" \
            "pid $pid"
    fi
    if docker_works && compose_services_run; then
        found=true
        find_deployment
        for service in postgres kafka api api-replica executor; do
            states="$(states_of "$service")"
            if [[ -n $states ]]; then
                awk '{ printf "%-28s %-10s %-10s %s\n", $1, $2, $3, $4 }' <<<"$states"
            elif [[ $service != api-replica ]]; then
                printf '%-28s %-10s %-10s %s\n' "$service" absent - -
            fi
            [[ -z $states && $service == api-replica ]] ||
                [[ -n $states && -z $(awk '$2 != "running" || ($3 != "healthy" && $3 != "-")' <<<"$states") ]] ||
                unhealthy+=("$service")
        done
        note "Deployment: $ENVIRONMENT, $IMAGE"
    fi
    [[ $found == true ]] || die "nothing of this checkout runs; start it with: ./deploy-api.sh dev, prod or quickstart"
    ((${#unhealthy[@]} == 0)) ||
        die "not healthy: ${unhealthy[*]}; see: ./deploy-api.sh logs ${unhealthy[*]}"
}

# Follows the log of the API, or of the named services.
logs() {
    local options=(--follow --tail 100) pid
    if [[ ${1:-} == --no-follow ]]; then
        options=(--tail 100)
        shift
    fi
    [[ ${1:-} != -* ]] || bad_usage "logs: unknown argument $1"
    (($#)) || set -- api
    if pid="$(dev_pid)"; then
        note "Log of workflow-api dev (pid $pid): $DEV_DIR/logs"
        local follow=(-F)
        [[ ${options[0]} == --follow ]] || follow=()
        exec tail -n 100 "${follow[@]}" "$DEV_DIR"/logs/*.log
    fi
    need_docker
    find_deployment
    project --profile replicas logs "${options[@]}" "$@"
}

# Runs migrations, or another command of `workflow-api migrate`.
migrate() {
    (($#)) || set -- up
    choose_database
    start_database
    program migrate "$@"
}

# Prints the answers of both health endpoints. Fails if one fails.
health() {
    no_arguments health "$@"
    need_curl
    local path answer failed=()
    for path in /health /health/ready; do
        answer="$(curl -sS --max-time 10 -w '\n%{http_code}' "$API_URL$path" 2>&1)" || true
        printf '%s %s %s\n' "$path" "${answer##*$'\n'}" "${answer%$'\n'*}"
        [[ ${answer##*$'\n'} == 200 ]] || failed+=("$path")
    done
    ((${#failed[@]} == 0)) ||
        die "$API_URL: ${failed[*]} failed; see: ./deploy-api.sh status, ./deploy-api.sh logs"
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
        "${COMPOSE[@]}" "${ALL_PROFILES[@]}" down >&2
        stopped=true
    fi
    [[ $stopped == true ]] || step "Nothing of this checkout is running"
}
