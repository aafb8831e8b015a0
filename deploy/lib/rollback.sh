# shellcheck shell=bash
#
# rollback: back to the previous image and to the schema that it was made for.

rollback() {
    local target="" is_dry=false keeps_schema=false current versions=() services
    while (($#)); do
        case $1 in
            --dry-run) is_dry=true ;;
            --keep-schema) keeps_schema=true ;;
            --to)
                target="$(value_of "$@")"
                shift
                ;;
            *) bad_usage "rollback: unknown argument $1" ;;
        esac
        shift
    done
    need_docker
    need_curl
    find_deployment
    current="$IMAGE"
    [[ -n $target ]] || target="$(previous_image)"
    [[ -n $target ]] || die "rollback: $DEPLOYMENTS has no earlier image; name one with --to, see: docker image ls workflow-api"
    [[ $target != "$current" ]] || die "rollback: $target is deployed already; name another image with --to"
    fetch_image "$target"
    choose_database
    start_database
    if [[ $keeps_schema == false ]]; then
        mapfile -t versions < <(versions_to_revert "$target")
        [[ ${versions[0]:-} != failed ]] || exit 1
    fi

    step "Rollback of $ENVIRONMENT from $current to $target:"
    note "1. stop API and executors; requests and steps under way have up to 30 s"
    note "2. back up the database into $BACKUP_DIRECTORY"
    if ((${#versions[@]})); then
        note "3. revert ${#versions[@]} migration(s) with $current, and delete the data in their tables and columns:"
        printf '         %s\n' "${versions[@]}" >&2
    else
        note "3. no migration to revert"
    fi
    note "4. start $target"
    note "5. check health"
    [[ $is_dry == false ]] || return 0

    step "Stopping API and executors"
    mapfile -t services < <(services_with_containers)
    # Without a name compose would stop everything.
    ((${#services[@]} == 0)) || project --profile replicas stop -t 30 "${services[@]}" >&2
    backup
    if ((${#versions[@]})); then
        step "Reverting ${#versions[@]} migration(s)"
        program migrate down "${#versions[@]}" --yes ||
            die "rollback: the migrations were not reverted; API and executors are stopped. Start $current again: ./deploy-api.sh $ENVIRONMENT; the backup: $LAST_BACKUP"
    fi
    compare_rows "$LAST_BACKUP" partly >&2 || note "Only tables that the reverted migrations change may differ"
    IMAGE="$target"
    start_service
    record_rollback
    health
    step "Ready: $target. Data of before: $LAST_BACKUP"
}

# Forgets the deployments after that of the image, so that another rollback goes further back.
record_rollback() {
    local last=0
    [[ ! -r $DEPLOYMENTS ]] || last="$(awk -v environment="$ENVIRONMENT" -v image="$IMAGE" \
        '$2 == environment && $3 == image { last = NR } END { print last + 0 }' "$DEPLOYMENTS")"
    if ((last)); then
        sed -i "$((last + 1)),\$d" "$DEPLOYMENTS"
    else
        record_deployment
    fi
}

# Prints the newest image before the current one in the same environment.
previous_image() {
    [[ ! -r $DEPLOYMENTS ]] ||
        awk -v environment="$ENVIRONMENT" -v current="$IMAGE" \
            '$2 == environment && $3 != current { image = $3 } END { print image }' "$DEPLOYMENTS"
}

services_with_containers() {
    local service
    for service in api api-replica executor; do
        [[ -z $(containers_of "$service") ]] || printf '%s\n' "$service"
    done
}

# Prints version and name of the applied migrations that the image does not know, the newest first. They must be the newest
# ones, because only those can be reverted. Prints "failed" after an error.
versions_to_revert() {
    local applied known revert
    applied="$(query "SELECT version || ' ' || description FROM _sqlx_migrations WHERE success ORDER BY version DESC")"
    known="$(versions_of "$1")"
    if [[ -z $applied || -z $known ]]; then
        complain "rollback: the migrations of the database or of $1 cannot be listed; see: ./deploy-api.sh migrate status, or use --keep-schema"
        return
    fi
    revert="$(grep -vwFf <(printf '%s\n' "$known") <<<"$applied" || true)"
    [[ -n $revert ]] || return 0
    if [[ $revert != "$(head -n "$(wc -l <<<"$revert")" <<<"$applied")" ]]; then
        complain "rollback: $1 does not know migrations that are older than some that it knows, so they cannot be reverted; use --keep-schema"
        return
    fi
    printf '%s\n' "$revert"
}

complain() {
    printf 'error: %s\n' "$1" >&2
    echo failed
}

# Prints the versions of the migrations that an image knows. If one is missing in the database, the program fails.
versions_of() (
    IMAGE="$1"
    program migrate status 2>/dev/null | awk '$1 ~ /^(applied|altered|invalid|missing)$/ { print $2 }' || true
)
