# shellcheck shell=bash
#
# backup: a dump of the database with a manifest.

# Name of a backup; names sort by time.
readonly BACKUP_NAME='workflow-api-[0-9]*Z'
readonly BACKUP_DIRECTORY="$ROOT/backups"
# The newest backup of this process, for rollback.
LAST_BACKUP=""

backup() {
    local directory="$BACKUP_DIRECTORY" keep=0 hook="${BACKUP_HOOK:-}"
    while (($#)); do
        case $1 in
            --to) directory="$(value_of "$@")" ;;
            --keep) keep="$(value_of "$@")" ;;
            --hook) hook="$(value_of "$@")" ;;
            *) bad_usage "backup: unknown argument $1" ;;
        esac
        shift 2
    done
    [[ $keep =~ ^[0-9]{1,6}$ ]] || bad_usage "backup: --keep needs a number of backups, not $keep"
    choose_database
    need_reachable_database

    local lock name part
    umask 077
    mkdir -p "$directory" || die "$directory: cannot be created; name another directory with --to"
    exec {lock}>"$directory/.lock" || die "$directory: cannot be written; name another directory with --to"
    flock -n "$lock" || die "$directory: another backup into it is running; wait for its end"
    # Left by a backup that was interrupted.
    rm -rf "$directory"/.workflow-api-*.part
    need_room "$directory"
    name="workflow-api-$(date -u +%Y%m%dT%H%M%SZ)"
    [[ ! -e $directory/$name ]] || die "$directory/$name: exists already; start again in a second"
    part="$directory/.$name.part"
    mkdir "$part"
    step "Backing up the database into $directory/$name"
    write_backup "$part" || {
        local free
        free="$(free_bytes "$directory")"
        rm -rf "$part"
        ((free > 1 << 20)) || die "disk: is full: $directory had $free bytes left; free some, or name another directory with --to"
        die "backup: failed; its messages are above. Nothing was kept"
    }
    sync -f "$part" 2>/dev/null || true
    mv "$part" "$directory/$name"
    sync -f "$directory" 2>/dev/null || true
    exec {lock}>&-
    LAST_BACKUP="$directory/$name"
    if [[ -n $hook ]]; then
        step "Running the hook: $hook"
        BACKUP="$LAST_BACKUP" bash -c "$hook" >&2 ||
            die "hook: failed with exit code $?: $hook. The backup is complete: $LAST_BACKUP. Old backups were kept"
    fi
    ((keep == 0)) || delete_old_backups "$directory" "$keep"
    printf '%s\n' "$LAST_BACKUP"
}

free_bytes() { df -Pk "$1" | awk 'NR == 2 { printf "%.0f\n", $4 * 1024 }'; }

# Prints complete backups of a directory, the oldest first.
list_backups() { find "$1" -mindepth 1 -maxdepth 1 -type d -name "$BACKUP_NAME" | sort; }

# Needs as much room as the last backup and a fifth more, or a quarter of the database: dumps are compressed.
need_room() {
    local free last needed
    free="$(free_bytes "$1")"
    last="$(list_backups "$1" | tail -n 1)"
    needed="$(manifest_value "$last" dump_bytes)"
    if [[ -n $needed ]]; then
        needed=$((needed * 6 / 5))
    else
        needed="$(query 'SELECT pg_database_size(current_database()) / 4')"
    fi
    ((free > needed)) || die "disk: is full: $1 has $free bytes left, and the backup needs about $needed; free some, or name another directory with --to"
}

# Writes dump and manifest. Reading the dump once checks it and counts its rows, which are those of one moment.
write_backup() {
    local dump="$1/database.dump" counts rows schema database_bytes server version=""
    pg pg_dump --format=custom --no-password --lock-wait-timeout=60000 >"$dump" </dev/null || return 1
    counts="$(pg pg_restore --data-only -f - <"$dump" | rows_of_script)" || return 1
    schema="$(sed -n 's/^schema\t//p' <<<"$counts")"
    rows="$(sed -n '/^public\./s/^\(.*\)\t\(.*\)$/    "\1": \2,/p' <<<"$counts" | sort)"
    database_bytes="$(query 'SELECT pg_database_size(current_database())')" || return 1
    server="$(query 'SHOW server_version' | tr -d '"\\')" || return 1
    version="$(program --version 2>/dev/null | tail -n 1 | tr -d '"\\\r')" || true
    cat >"$1/manifest.json" <<JSON || return 1
{
  "format": 1,
  "created_at": "$(date -u +%Y-%m-%dT%H:%M:%SZ)",
  "version": "$version",
  "schema_version": $schema,
  "postgresql_version": "$server",
  "database_bytes": $database_bytes,
  "dump": "database.dump",
  "dump_bytes": $(stat -c %s "$dump"),
  "dump_sha256": "$(sha256sum <"$dump" | cut -d ' ' -f 1)",
  "rows": {
${rows%,}
  }
}
JSON
}

# Prints the number of rows of each table in a script of pg_restore, and the newest migration.
rows_of_script() {
    LC_ALL=C awk -F '\t' '
        is_data && $0 == "\\." { print table "\t" rows; is_data = 0; next }
        is_data { rows++; if (table ~ /\._sqlx_migrations$/ && $1 + 0 > newest + 0) newest = $1; next }
        /^COPY / { split($0, words, " "); table = words[2]; rows = 0; is_data = 1 }
        END { print "schema\t" newest + 0; exit is_data }' OFMT=%.0f CONVFMT=%.0f
}

# Prints a member of a manifest: manifest_value DIRECTORY NAME.
manifest_value() { sed -n "s/^  \"$2\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}$/\1/p" "$1/manifest.json" 2>/dev/null || true; }

# Prints the row counts of a manifest: table, tab, number.
manifest_rows() { sed -n 's/^    "\(public\.[a-zA-Z0-9_."]*\)": \([0-9]*\),\{0,1\}$/\1\t\2/p' "$1/manifest.json"; }

delete_old_backups() {
    local backups old
    mapfile -t backups < <(list_backups "$1")
    for old in "${backups[@]:0:$((${#backups[@]} > $2 ? ${#backups[@]} - $2 : 0))}"; do
        note "Deleting the old backup $old"
        rm -rf "$old"
    done
}
