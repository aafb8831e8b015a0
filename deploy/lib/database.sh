# shellcheck shell=bash
#
# Access to the service's database and program: those of compose, or those of this host with DATABASE_URL.

# true: with a DATABASE_URL in the environment, migrate, backup and restore use that database and programs of this host.
ON_HOST=false
# Variables of libpq for a database outside compose; empty for the container `postgres`.
PG_ENVIRONMENT=()

# Parts of a database URL; set by parse_database_url. Several hosts and their ports are separated by commas.
DB_USER="" DB_PASSWORD="" DB_HOST="" DB_PORT="" DB_NAME=""
declare -A DB_PARAMETERS=()

# Prints the value of a setting as compose reads it: setting NAME [FILE].
setting() {
    local value
    value="$(sed -n "s/^[[:space:]]*\(export[[:space:]]\{1,\}\)\{0,1\}$1[[:space:]]*=[[:space:]]*//p" \
        "${2:-$PRODUCTION_SETTINGS}" | tail -n 1 | tr -d '\r')"
    value="${value%"${value##*[![:space:]]}"}"
    case $value in
        \"*\") value="${value:1:-1}" ;;
        \'*\') value="${value:1:-1}" ;;
    esac
    printf '%s' "$value"
}

# Prints the value of a setting that docker-compose.yml substitutes: the shell's, or that of production's file.
substituted() {
    if [[ -n ${!1:-} ]]; then
        printf '%s' "${!1}"
    elif [[ $ENVIRONMENT == prod ]]; then
        setting "$1"
    fi
}

percent_decoded() {
    local text="${1//\\/\\\\}"
    printf '%b' "${text//%/\\x}"
}

# Sets the DB_* variables. Fails if the text is not the URL of a PostgreSQL database.
parse_database_url() {
    local rest="$1" pair host port
    local -a list hosts=() ports=()
    DB_USER="" DB_PASSWORD="" DB_HOST="" DB_PORT="" DB_NAME="" DB_PARAMETERS=()
    [[ $rest =~ ^postgres(ql)?(\+[A-Za-z0-9]+)?://([^/?]*)/?([^?]*)(\?(.*))?$ ]] || return 1
    local authority="${BASH_REMATCH[3]}" name="${BASH_REMATCH[4]}" query="${BASH_REMATCH[6]}"
    if [[ $authority == *@* ]]; then
        local login="${authority%@*}"
        DB_USER="$(percent_decoded "${login%%:*}")"
        [[ $login != *:* ]] || DB_PASSWORD="$(percent_decoded "${login#*:}")"
        authority="${authority##*@}"
    fi
    IFS=, read -ra list <<<"$authority"
    for host in "${list[@]}"; do
        port=5432
        if [[ $host =~ ^(.*):([0-9]+)$ ]]; then
            host="${BASH_REMATCH[1]}"
            port="${BASH_REMATCH[2]}"
        fi
        host="${host#[}"
        hosts+=("$(percent_decoded "${host%]}")")
        ports+=("$port")
    done
    DB_HOST="$(IFS=, && echo "${hosts[*]}")"
    DB_PORT="$(IFS=, && echo "${ports[*]}")"
    DB_NAME="$(percent_decoded "$name")"
    while [[ -n $query ]]; do
        pair="${query%%&*}"
        query="${query#"$pair"}"
        query="${query#&}"
        # The service's library also accepts these names with hyphens: ssl-mode.
        local key="${pair%%=*}"
        DB_PARAMETERS["${key//-/}"]="$(percent_decoded "${pair#*=}")"
    done
    DB_HOST="${DB_PARAMETERS[host]:-$DB_HOST}"
    DB_PORT="${DB_PARAMETERS[port]:-$DB_PORT}"
    DB_USER="${DB_PARAMETERS[user]:-$DB_USER}"
    DB_PASSWORD="${DB_PARAMETERS[password]:-$DB_PASSWORD}"
    DB_NAME="${DB_PARAMETERS[dbname]:-${DB_NAME:-$DB_USER}}"
}

# Decides which database the command uses: DATABASE_URL of the environment, that of production's settings, or compose's.
choose_database() {
    local url="${DATABASE_URL:-}" name value
    PG_ENVIRONMENT=()
    # dev, prod and rollback have set the environment, and use compose.
    if [[ -n $url && -z $ENVIRONMENT ]]; then
        ON_HOST=true
    else
        need_docker
        [[ -n $ENVIRONMENT ]] || find_deployment
        url="$(substituted DATABASE_URL)"
        [[ -n $url ]] || return 0
    fi
    parse_database_url "$url" || die "DATABASE_URL: is not a URL of the form postgresql://user:password@host:5432/database"
    if [[ $ON_HOST == false && $DB_HOST == postgres ]]; then
        return 0
    fi
    PG_ENVIRONMENT=(PGCONNECT_TIMEOUT=10 PGAPPNAME=deploy-api.sh)
    [[ $DB_HOST != *,* ]] || DB_PARAMETERS[target_session_attrs]=read-write
    while read -r name value; do
        [[ -z $value ]] || PG_ENVIRONMENT+=("$name=$value")
    done <<VARIABLES
PGHOST $DB_HOST
PGPORT $DB_PORT
PGUSER $DB_USER
PGPASSWORD $DB_PASSWORD
PGDATABASE $DB_NAME
PGTARGETSESSIONATTRS ${DB_PARAMETERS[target_session_attrs]:-}
PGSSLMODE ${DB_PARAMETERS[sslmode]:-}
PGSSLROOTCERT ${DB_PARAMETERS[sslrootcert]:-}
PGSSLCERT ${DB_PARAMETERS[sslcert]:-}
PGSSLKEY ${DB_PARAMETERS[sslkey]:-}
VARIABLES
    local tool
    for tool in psql pg_dump pg_restore; do
        have "$tool" || die "$tool: is not installed, and the database is outside compose; install the package postgresql-client"
    done
}

# Starts the container of the database, if it is compose's.
start_database() {
    ((${#PG_ENVIRONMENT[@]} == 0)) || return 0
    project up -d --no-recreate postgres >&2
    wait_until_healthy 120 postgres
}

# Runs a program of PostgreSQL on the database: pg psql ARGS
pg() {
    if ((${#PG_ENVIRONMENT[@]})); then
        # Not as arguments of `env`, which other users can read.
        (
            export "${PG_ENVIRONMENT[@]}"
            exec "$@"
        )
    else
        # shellcheck disable=SC2016  # the container's shell expands it
        project exec -T postgres sh -c 'PGUSER="$POSTGRES_USER" PGDATABASE="$POSTGRES_DB" exec "$@"' sh "$@"
    fi
}

# Runs a query; prints the rows without headers, columns separated by tabs.
query() { pg psql -X -w -q -A -t -F $'\t' -v ON_ERROR_STOP=1 -c "$1" </dev/null; }

need_reachable_database() {
    local message
    message="$(query 'SELECT 1' 2>&1 >/dev/null)" ||
        die "database: cannot be used: ${message:-no answer}; see: ./deploy-api.sh status"
}

# Runs the service's program: that of the image, or that of this host.
program() {
    if [[ $ON_HOST == true ]]; then
        "$(host_program)" "$@"
    else
        project run --rm --no-deps -T api "$@" </dev/null
    fi
}

# Prints the path of this host's program: PROGRAM, the installed one, or the newest that was built here.
host_program() {
    local found
    found="${PROGRAM:-$(command -v workflow-api || true)}"
    # shellcheck disable=SC2012  # no unusual names
    [[ -n $found ]] || found="$(ls -t {"${CARGO_TARGET_DIR:-target}",target}/{release,debug}/workflow-api 2>/dev/null | head -n 1)"
    [[ -n $found ]] || die "workflow-api: is not on the PATH; install it, or name it with PROGRAM=/path/of/workflow-api"
    printf '%s' "$found"
}
