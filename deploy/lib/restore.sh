# shellcheck shell=bash
#
# restore: puts a backup into the database, in one transaction.

restore() {
    local is_forced=false source="" dump
    while (($#)); do
        case $1 in
            --force) is_forced=true ;;
            -*) bad_usage "restore: unknown argument $1" ;;
            *)
                [[ -z $source ]] || bad_usage "restore: name one backup, not several"
                source="$1"
                ;;
        esac
        shift
    done
    [[ -n $source ]] || bad_usage "restore: name a backup: its directory, or the file of its dump"
    dump="$source"
    [[ ! -d $source ]] || dump="$source/database.dump"
    [[ -r $dump ]] || die "$dump: does not exist or cannot be read; see: ls $BACKUP_DIRECTORY"
    verify_checksum "$dump"
    choose_database
    start_database
    need_reachable_database
    refuse_running_service
    local tables
    tables="$(query "SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('public')")"
    ((${tables:-0} == 0)) || [[ $is_forced == true ]] ||
        die "database: is not empty; restore into a new database, or replace everything in it with --force"

    step "Restoring $dump in one transaction"
    restoring_script "$dump" "$is_forced" | pg psql -X -w -q -v ON_ERROR_STOP=1 -f - >/dev/null ||
        die "restore: failed and was rolled back; its messages are above. The database is as before. If a role or a right is missing, a superuser has to give it first"
    query "ANALYZE"
    if [[ -r $(dirname "$dump")/manifest.json ]]; then
        compare_rows "$(dirname "$dump")" || die "restore: the rows differ from the manifest, see above; do not start the service"
    fi
    step "Migrating the database"
    program migrate up || die "migrate: failed; its messages are above. The backup is restored; then: ./deploy-api.sh migrate"
    step "Restored. Start the service: ./deploy-api.sh dev or prod; runs that had not ended go on"
}

# The checksum is in the manifest, or in FILE.sha256 beside the dump.
verify_checksum() {
    local directory expected="" found
    directory="$(dirname "$1")"
    if [[ -r $directory/manifest.json && $(manifest_value "$directory" dump) == "$(basename "$1")" ]]; then
        expected="$(manifest_value "$directory" dump_sha256)"
    elif [[ -r $1.sha256 ]]; then
        expected="$(cut -d ' ' -f 1 "$1.sha256")"
    fi
    [[ $expected =~ ^[0-9a-f]{64}$ ]] || die "$1: has no checksum: neither manifest.json nor $1.sha256 has it. If you trust the file: sha256sum $1 > $1.sha256"
    step "Verifying the checksum"
    found="$(sha256sum <"$1" | cut -d ' ' -f 1)"
    [[ $found == "$expected" ]] || die "$1: is damaged: its SHA-256 is $found, not $expected; use another backup"
}

# Sessions of the service have the application name workflow-api, whatever host its processes are on.
refuse_running_service() {
    local sessions
    sessions="$(query "SELECT count(*), coalesce(string_agg(DISTINCT host(client_addr), ' '), 'this host') FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'workflow-api'")"
    [[ $sessions == 0$'\t'* ]] ||
        die "service: API or executor is using the database (sessions and addresses: ${sessions/$'\t'/, }); stop them first: ./deploy-api.sh stop (restore starts PostgreSQL again), and those on other hosts"
}

# Prints SQL. The end is COMMIT only if the whole dump was read; otherwise psql ends without it, which rolls back.
restoring_script() {
    echo "BEGIN;"
    if [[ $2 == true ]]; then
        cat <<'SQL'
SET LOCAL lock_timeout = '10s';
SET LOCAL client_min_messages = warning;
DROP SCHEMA public CASCADE;
CREATE SCHEMA public;
ALTER SCHEMA public OWNER TO pg_database_owner;
GRANT USAGE ON SCHEMA public TO PUBLIC;
SQL
    fi
    pg pg_restore --no-owner -f - <"$1" || return 1
    echo "COMMIT;"
}

# Prints the rows of each table in the manifest and in the database. Fails if they differ: compare_rows DIRECTORY [partly].
# With `partly`, tables may be absent.
compare_rows() {
    local table count present sql="" now
    present="$(query "SELECT 'public.' || quote_ident(relname) FROM pg_class
        WHERE relnamespace = to_regnamespace('public') AND relkind IN ('r', 'p')")"
    while IFS=$'\t' read -r table count; do
        sql+="${sql:+ UNION ALL }SELECT '$table', $count, "
        if grep -qxF "$table" <<<"$present"; then
            sql+="(SELECT count(*) FROM $table)"
        else
            sql+="NULL"
        fi
    done < <(manifest_rows "$1")
    [[ -n $sql ]] || return 0
    now="$(query "$sql ORDER BY 1")" || return 1
    awk -F '\t' -v partly="${2:-}" '
        BEGIN { printf "%-34s %12s %12s\n", "table", "backup", "database" }
        { differs += $3 == "" ? partly == "" : $2 != $3
          printf "%-34s %12s %12s\n", $1, $2, $3 == "" ? "absent" : $3 }
        END { exit differs > 0 }' <<<"$now"
}
