# shellcheck shell=bash
#
# Docker and compose.

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
