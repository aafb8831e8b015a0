# shellcheck shell=bash
#
# Docker and compose, and the deployment of this checkout: its environment (dev or prod), settings file and image.

# One line for each deployment, the newest last: time, environment, image.
readonly DEPLOYMENTS="$ROOT/.deploy/deployments"
readonly PRODUCTION_SETTINGS=.env.api.production
# Published ports that must be free: the API, PostgreSQL, Kafka.
readonly PUBLISHED_PORTS=("8000 api" "5432 postgres" "9092 kafka")
readonly API_URL="${WORKFLOW_API_URL:-http://localhost:8000}"

# Profiles whose services `stop` ends.
readonly ALL_PROFILES=(--profile api --profile replicas --profile monitoring --profile demo)

# Set by find_deployment, dev and prod.
ENVIRONMENT=""
IMAGE=workflow-api:latest

# Command of compose in the spelling that is installed; set by find_compose.
COMPOSE=()

find_compose() {
    ((${#COMPOSE[@]} == 0)) || return 0
    if docker compose version >/dev/null 2>&1; then
        COMPOSE=(docker compose)
    elif have docker-compose; then
        COMPOSE=(docker-compose)
    else
        return 1
    fi
}

compose_services_run() {
    docker_works && find_compose || return 1
    # Stopping services needs no settings, but compose requires the file.
    [[ -e ${API_ENV_FILE:-.env.api} ]] || export API_ENV_FILE=.env.api.example
    [[ -n $("${COMPOSE[@]}" "${ALL_PROFILES[@]}" ps -q 2>/dev/null) ]]
}

docker_works() { have docker && timeout 10 docker info >/dev/null 2>&1; }

need_docker() {
    have docker || die "docker: is not installed; see https://docs.docker.com/engine/install"
    docker_works || die "docker: the daemon does not answer; start it (systemctl start docker), or run this as a member of the group docker"
    find_compose ||
        die "compose: is not installed; install the package docker-compose-plugin or docker-compose"
}

need_curl() { have curl || die "curl: is not installed; install the package curl"; }

# Sets environment and image to those of the newest deployment. Without one it is production if only that has settings.
find_deployment() {
    local line=""
    [[ ! -r $DEPLOYMENTS ]] || line="$(tail -n 1 "$DEPLOYMENTS")"
    if [[ -n $line ]]; then
        read -r _ ENVIRONMENT IMAGE <<<"$line"
    elif [[ -e $PRODUCTION_SETTINGS && ! -e .env.api ]]; then
        ENVIRONMENT=prod
    else
        ENVIRONMENT=dev
    fi
}

record_deployment() {
    mkdir -p "$(dirname "$DEPLOYMENTS")"
    echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) $ENVIRONMENT $IMAGE" >>"$DEPLOYMENTS"
}

# Runs compose with the settings and the image of the deployment: project [--profile NAME] COMMAND [ARGS].
project() (
    options=(--profile api)
    if [[ $ENVIRONMENT == prod ]]; then
        options+=(--env-file "$PRODUCTION_SETTINGS")
        # The shell's value would win over that of the file.
        unset API_ENV_FILE
    elif [[ ! -e ${API_ENV_FILE:-.env.api} ]]; then
        # Compose requires the file for every command.
        export API_ENV_FILE=.env.api.example
    fi
    export WORKFLOW_API_IMAGE="$IMAGE"
    "${COMPOSE[@]}" "${options[@]}" "$@"
)

# Prints the ids of all containers of a service, stopped ones too.
containers_of() { project --profile replicas ps -a -q "$1" </dev/null 2>/dev/null || true; }

# Prints a line for each container of a service: name, state, health (- if it has no check), image.
states_of() {
    local ids
    mapfile -t ids < <(containers_of "$1")
    ((${#ids[@]})) || return 0
    docker inspect --format \
        '{{.Name}} {{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{else}}-{{end}} {{.Config.Image}}' \
        "${ids[@]}" | sed 's|^/||'
}

# Waits until each container of the services is healthy: wait_until_healthy SECONDS SERVICE..
wait_until_healthy() {
    local deadline=$((SECONDS + $1)) service states
    shift
    for service; do
        while true; do
            states="$(states_of "$service")"
            [[ -z $states || -n $(awk '$2 != "running" || ($3 != "healthy" && $3 != "-")' <<<"$states") ]] || break
            ((SECONDS < deadline)) ||
                die "$service: is not healthy (${states:-no container}); see: ./deploy-api.sh logs $service"
            sleep 1
        done
    done
}

wait_until_ready() {
    local deadline=$((SECONDS + $1))
    until curl -fsS --max-time 5 -o /dev/null "$API_URL/health/ready" 2>/dev/null; do
        ((SECONDS < deadline)) || die "api: is not ready at $API_URL; see: ./deploy-api.sh health, ./deploy-api.sh logs"
        sleep 1
    done
}

start_infrastructure() {
    step "Starting PostgreSQL and Kafka"
    # A container that runs stays as it is.
    project up -d --no-recreate postgres kafka >&2
    wait_until_healthy 180 postgres kafka
}

# Starts API and executors, as many as there are already.
start_service() {
    local apis executors replicas options=() profiles=()
    # More than one with deploy/compose/balanced.yml only.
    apis="$(containers_of api | wc -l)"
    executors="$(containers_of executor | wc -l)"
    replicas="$(containers_of api-replica | wc -l)"
    ((apis < 2)) || options+=(--scale "api=$apis")
    ((executors < 2)) || options+=(--scale "executor=$executors")
    if ((replicas > 0)); then
        profiles=(--profile replicas)
        options+=(--scale "api-replica=$replicas")
    fi
    step "Starting API and executors: $IMAGE"
    project "${profiles[@]}" up -d --no-build "${options[@]}" >&2
    wait_until_ready 120
    wait_until_healthy 120 executor
}

# Builds the image with a tag of its own, which a rollback can name, and also as workflow-api:latest. Sets IMAGE.
build_image() {
    local version revision
    version="$(git describe --tags --always --dirty="-$(date -u +%Y%m%d%H%M%S)" 2>/dev/null || date -u +%Y%m%d%H%M%S)"
    revision="$(git rev-parse HEAD 2>/dev/null || echo unknown)"
    IMAGE="workflow-api:$version"
    step "Building the image $IMAGE (the first time takes many minutes)"
    project build --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
        --build-arg "CREATED=$(date -u +%Y-%m-%dT%H:%M:%SZ)" api >&2 || die "image: the build failed; its messages are above"
    docker tag "$IMAGE" workflow-api:latest
}

# Gets an image of a registry, unless it is here.
fetch_image() {
    docker image inspect "$1" >/dev/null 2>&1 || docker pull "$1" >&2 ||
        die "image: $1 is neither on this host nor in its registry; see: docker image ls workflow-api"
}
