#!/bin/sh
#
# Writes a backup of the database into a directory, checks it, and deletes old backups.
#
#   DATABASE_URL=… backup.sh --keep NUMBER DIRECTORY
#
# Each backup is workflow-api-TIME.dump (pg_dump's custom format) with workflow-api-TIME.dump.sha256 beside it. Old
# backups are deleted only after a new one is complete.

set -eu
umask 077

fail() {
    echo "backup: $*" >&2
    exit 1
}

if [ $# -ne 3 ] || [ "$1" != --keep ]; then
    fail "usage: backup.sh --keep NUMBER DIRECTORY"
fi
case $2 in
    '' | *[!0-9]* | 0) fail "--keep needs a number from 1" ;;
esac
[ -n "${DATABASE_URL:-}" ] || fail "DATABASE_URL is not set"
keep=$2
cd "$3"

# libpq does not know the driver in forms such as postgresql+asyncpg://
url="$(printf '%s' "$DATABASE_URL" | sed -E 's#^(postgres(ql)?)\+[A-Za-z0-9]+://#\1://#')"
name="workflow-api-$(date -u +%Y%m%dT%H%M%SZ).dump"

# Left by a backup that was interrupted.
rm -f workflow-api-*.part
pg_dump --format=custom --no-password --file="$name.part" --dbname="$url"
# Reads the table of contents: an incomplete file has none.
pg_restore --list "$name.part" >"$name.list.part" || fail "the backup cannot be read"
grep -q ' workflow_runs ' "$name.list.part" || fail "the backup has no table workflow_runs"
rm "$name.list.part"
sha256sum "$name.part" | sed "s#  .*#  $name#" >"$name.sha256.part"
mv "$name.sha256.part" "$name.sha256"
sync
mv "$name.part" "$name"
echo "backup: wrote $name, $(wc -c <"$name") bytes"

# The names sort by time.
count="$(find . -maxdepth 1 -name 'workflow-api-*.dump' | wc -l)"
find . -maxdepth 1 -name 'workflow-api-*.dump' | sort | head -n "$((count > keep ? count - keep : 0))" |
    while read -r old; do
        rm -f "$old" "$old.sha256"
        echo "backup: deleted ${old#./}"
    done
