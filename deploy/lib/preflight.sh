# shellcheck shell=bash
#
# Preflight of a production deployment. It finds all problems before it reports them. `workflow-api check config` checks
# the settings that the service reads; here is what the service cannot see.

# Minimum length of the database's password.
readonly MIN_PASSWORD=16
# Minimum of free space for the database, Kafka and logs.
readonly MIN_FREE_MB=1024

ACCEPTS_PLAIN_DATABASE=false
PROBLEMS=()
WARNINGS=()

# Each takes one message: "ITEM: what is wrong; what to do".
problem() { PROBLEMS+=("$1"); }
warning() { WARNINGS+=("$1"); }

# Ends the script if there is a problem.
preflight() {
    step "Preflight of production: $PRODUCTION_SETTINGS, $IMAGE"
    PROBLEMS=() WARNINGS=()
    check_by_program
    check_mode
    check_database_settings
    check_addresses
    check_reuse_of_secrets
    check_secrecy_of_settings
    check_log_settings
    check_https
    check_published_ports
    check_host
    local line
    for line in "${WARNINGS[@]}"; do printf 'warning: %s\n' "$line" >&2; done
    if ((${#PROBLEMS[@]})); then
        for line in "${PROBLEMS[@]}"; do printf '  %s\n' "$line" >&2; done
        die "preflight: ${#PROBLEMS[@]} problem(s), listed above; nothing was deployed. Mend them in $PRODUCTION_SETTINGS, then: ./deploy-api.sh prod --check"
    fi
    note "No problems"
}

check_by_program() {
    local said line count=${#PROBLEMS[@]} status=0
    said="$(program check config 2>&1)" || status=$?
    while IFS= read -r line; do
        if [[ $line =~ ^\ \ [A-Z_]+:\  ]]; then
            problem "${line#  }"
        # TLS of the database is looked at below.
        elif [[ $line == "warning: "* && $line != "warning: DATABASE_URL: "* ]]; then
            warning "${line#warning: }"
        fi
    done <<<"$said"
    if ((status && ${#PROBLEMS[@]} == count)); then
        problem "image: workflow-api check config cannot run in $IMAGE: ${said##*$'\n'}"
    fi
}

check_mode() {
    case "$(substituted PRODUCTION)" in
        "" | [Tt][Rr][Uu][Ee] | 1 | [Yy][Ee][Ss] | [Oo][Nn]) ;;
        *) problem "PRODUCTION: must not be $(substituted PRODUCTION) in production; remove the line or the variable" ;;
    esac
    local name
    for name in DATABASE_URL DATABASE_REPLICA_URL KAFKA_BROKERS PRODUCTION POSTGRES_PASSWORD; do
        [[ -z ${!name:-} ]] || warning "$name: the environment of this shell has a value, which wins over $PRODUCTION_SETTINGS"
    done
}

check_database_settings() {
    local url example
    url="$(substituted DATABASE_REPLICA_URL)"
    [[ -z $url || $url =~ [?\&]sslmode=(require|verify-ca|verify-full)(\&|$) || $ACCEPTS_PLAIN_DATABASE == true ]] ||
        problem "DATABASE_REPLICA_URL: needs TLS: add ?sslmode=verify-full&sslrootcert=FILE or ?sslmode=require"
    url="$(substituted DATABASE_URL)"
    example="postgresql://workflow_user:PASSWORD@postgres:5432/workflow_db"
    if [[ -z $url ]]; then
        problem "DATABASE_URL: is not set, and the default has the sample password; set $example with a password of: openssl rand -hex 24"
        return
    fi
    # The program reports a malformed URL.
    parse_database_url "$url" || return 0
    check_database_password
    case ${DB_PARAMETERS[sslmode]:-} in
        require | verify-ca | verify-full) ;;
        *)
            if [[ $ACCEPTS_PLAIN_DATABASE == true ]]; then
                warning "DATABASE_URL: the connection to $DB_HOST has no TLS, which --plain-database accepts"
            else
                problem "DATABASE_URL: needs TLS: add ?sslmode=verify-full&sslrootcert=FILE or ?sslmode=require. If the connection does not leave this host, as with the container postgres: prod --plain-database"
            fi
            ;;
    esac
    if [[ $DB_HOST == postgres && $(substituted POSTGRES_PASSWORD) != "$DB_PASSWORD" ]]; then
        problem "POSTGRES_PASSWORD: must be the password in DATABASE_URL, because the container postgres makes its user with it; add the line POSTGRES_PASSWORD=..."
    fi
}

check_database_password() {
    local remedy="make one with: openssl rand -hex 24, set it in the database (ALTER ROLE ... PASSWORD) and here"
    if [[ -z $DB_PASSWORD ]]; then
        [[ -n ${DB_PARAMETERS[sslcert]:-} ]] || problem "DATABASE_URL: has no password; $remedy"
    elif [[ ${DB_PASSWORD,,} =~ workflow_pass|strong_?password|change|example|password|secret|postgres ]]; then
        problem "DATABASE_URL: the password is a sample or has a common word; $remedy"
    elif ((${#DB_PASSWORD} < MIN_PASSWORD)); then
        problem "DATABASE_URL: the password has fewer than $MIN_PASSWORD characters; $remedy"
    elif [[ $(fold -w 1 <<<"$DB_PASSWORD" | sort -u | wc -l) -lt 8 ]]; then
        problem "DATABASE_URL: the password has few different characters; $remedy"
    fi
}

# In a container localhost is the container itself.
check_addresses() {
    local name
    for name in DATABASE_URL DATABASE_REPLICA_URL KAFKA_BROKERS; do
        [[ ! $(substituted "$name") =~ (localhost|127\.[0-9.]+|\[::1\]):?[0-9]* ]] ||
            problem "$name: names localhost, which is the container itself; name the service (postgres, kafka:29092) or the host's address"
    done
}

check_reuse_of_secrets() {
    [[ -r .env.api ]] || return 0
    local name value
    for name in JWT_SECRET ENCRYPTION_KEY BOOTSTRAP_API_KEY; do
        value="$(setting "$name")"
        [[ -z $value || $value != "$(setting "$name" .env.api)" ]] ||
            problem "$name: is the same as in .env.api; each environment needs its own: openssl rand -hex 32"
    done
}

check_secrecy_of_settings() {
    local file
    [[ -z $(find "$PRODUCTION_SETTINGS" -perm /077) ]] ||
        warning "$PRODUCTION_SETTINGS: other users of this host can read it; chmod 600 $PRODUCTION_SETTINGS"
    have git && git rev-parse --git-dir >/dev/null 2>&1 || return 0
    for file in .env.api "$PRODUCTION_SETTINGS"; do
        if git ls-files --error-unmatch "$file" >/dev/null 2>&1; then
            problem "$file: is under version control; git rm --cached $file, and replace its secrets"
        elif ! git check-ignore -q "$file"; then
            problem "$file: is not ignored by git; add it to .gitignore"
        fi
    done
}

check_log_settings() {
    local level format
    level="$(setting LOG_LEVEL)"
    # The level of all loggers, without those of single ones.
    level="$(tr ',' '\n' <<<"$level" | grep -v '=' | head -n 1 || true)"
    level="${level//[[:space:]]/}"
    format="$(setting LOG_FORMAT)"
    case ${level^^} in
        "" | INFO | WARN | WARNING | ERROR) ;;
        *) warning "LOG_LEVEL: is $level; in production use INFO or WARNING" ;;
    esac
    [[ ${format:-json} == json ]] || warning "LOG_FORMAT: is $format; in production use json"
}

check_https() {
    [[ $(setting PUBLIC_URL) == https://* ]] ||
        warning "PUBLIC_URL: is not an https address; without TLS in front of the API, tokens and keys can be read on the way"
    [[ -n $(setting TRUSTED_PROXIES) ]] ||
        warning "TRUSTED_PROXIES: is not set; behind a reverse proxy list its address, or every client has the proxy's address"
}

# Only the API is published beyond this host, or the proxy of deploy/compose/balanced.yml.
check_published_ports() {
    local service
    for service in $(project config 2>/dev/null | services_with_public_ports); do
        problem "$service: docker-compose.yml or its override publishes a port beyond this host; write 127.0.0.1: in front of it"
    done
}

# Reads `compose config` of both spellings: ports as "0.0.0.0:5432:5432/tcp", or as members host_ip and published.
services_with_public_ports() {
    awk '
        function finish() { if (is_published && !is_local) print service; is_published = is_local = 0 }
        /^[a-z]/ { finish(); in_services = /^services:/; in_ports = 0 }
        in_services && /^  [a-z]/ { finish(); service = $1; sub(/:$/, "", service); in_ports = 0 }
        in_services && /^    [a-z]/ { finish(); in_ports = /^    ports:/ && service !~ /^(api|proxy$)/ ; next }
        !in_ports { next }
        /^ *- / { finish() }
        /^ *- *"?[][0-9.:-]+:[0-9]+/ { is_published = 1; is_local = /"?127\./ }
        /host_ip: *"?127\./ { is_local = 1 }
        /published:/ { is_published = 1 }
        END { finish() }' | sort -u
}

check_host() {
    local free root entry port service
    root="$(docker info --format '{{.DockerRootDir}}' 2>/dev/null || true)"
    [[ -d $root ]] || root=.
    free="$(df -Pm "$root" | awk 'NR == 2 { print $4 }')"
    ((free >= MIN_FREE_MB)) ||
        problem "disk: only $free MB are free in $root, at least $MIN_FREE_MB are needed; free some: docker system df, docker image prune"
    for entry in "${PUBLISHED_PORTS[@]}"; do
        read -r port service <<<"$entry"
        ! is_taken "$port" "$service" ||
            problem "port: $port ($service) is in use by another process; find it with: ss -ltnp, and stop it"
    done
}
