# shellcheck shell=bash
#
# Required packages and programs.

# Each `need_*` function adds to this list; `install_missing` installs the whole list, or does nothing if it is empty.
MISSING=()

have() { command -v "$1" >/dev/null 2>&1; }

need_build_tools() {
    have cc || MISSING+=(gcc libc6-dev)
    have c++ || MISSING+=(g++)
    have make || MISSING+=(make)
    have pkg-config || MISSING+=(pkg-config)
    if ! have pkg-config || ! pkg-config --exists openssl; then
        MISSING+=(libssl-dev)
    fi
}

# Prometheus with promtool, and Alertmanager with amtool.
need_prometheus() {
    have promtool || MISSING+=(prometheus)
    have amtool || MISSING+=(prometheus-alertmanager)
}

need_postgres_server() { find_postgres_bin >/dev/null || MISSING+=(postgresql); }

# For the tests of connections to the database.
need_pgbouncer() {
    have pgbouncer || MISSING+=(pgbouncer)
    have openssl || MISSING+=(openssl)
}

need_kafka() {
    have openssl || MISSING+=(openssl)
    find_java >/dev/null || MISSING+=("$(java_package)")
    if [[ ! -d $(kafka_libs) ]]; then
        have mvn || MISSING+=(maven)
    fi
}

# Debian and Ubuntu releases have different versions of Java; Kafka 4 needs 17 or newer.
java_package() {
    local package
    for package in openjdk-17-jre-headless openjdk-21-jre-headless openjdk-25-jre-headless; do
        if have apt-cache && apt-cache show "$package" >/dev/null 2>&1; then
            echo "$package"
            return
        fi
    done
    echo default-jre-headless
}

# A browser for the tests of the documentation pages. Ubuntu has Chromium only as a snap; CHROMIUM names another one.
need_chromium() {
    [[ -n ${CHROMIUM:-} ]] || have chromium || have chromium-browser || have google-chrome || MISSING+=(chromium)
}

install_missing() {
    ((${#MISSING[@]})) || return 0
    local line="apt-get update && apt-get install -y --no-install-recommends ${MISSING[*]}"
    have apt-get || die "these packages are missing (their Debian names), and there is no apt-get here: ${MISSING[*]}"

    local as_root=()
    if ((EUID != 0)); then
        have sudo || die "system packages are missing; run this as root, then start again: $line"
        as_root=(sudo)
        # Without a terminal a password cannot be entered: fail at once instead of waiting for it.
        [[ -t 0 ]] || as_root+=(-n)
    fi
    step "Installing system packages${as_root[0]:+ with sudo}: ${MISSING[*]}"
    as_root+=(env DEBIAN_FRONTEND=noninteractive)
    {
        "${as_root[@]}" apt-get update -q &&
            keep_machine_free_of_a_default_cluster "${as_root[@]}" &&
            keep_machine_free_of_services "${as_root[@]}" &&
            "${as_root[@]}" apt-get install -q -y --no-install-recommends "${MISSING[@]}"
    } >&2 || die "installing failed; run this as root, then start again: $line"
    MISSING=()
}

# Debian's PostgreSQL package starts a server on port 5432 when it is installed. Only the programs are needed.
keep_machine_free_of_a_default_cluster() {
    [[ " ${MISSING[*]} " == *" postgresql "* ]] || return 0
    local directory=/etc/postgresql-common/createcluster.d
    "$@" mkdir -p "$directory"
    echo 'create_main_cluster = false' | "$@" tee "$directory/workflow-api.conf" >/dev/null
}

# So do the packages of Prometheus, Alertmanager and PgBouncer. A unit that is a link to /dev/null is masked.
keep_machine_free_of_services() {
    local unit
    for unit in prometheus prometheus-alertmanager pgbouncer; do
        [[ " ${MISSING[*]} " == *" $unit "* && ! -e /etc/systemd/system/$unit.service ]] || continue
        note "The service $unit stays off; to use it here: systemctl unmask $unit"
        "$@" mkdir -p /etc/systemd/system
        "$@" ln -s /dev/null "/etc/systemd/system/$unit.service"
    done
}

# rustup installs cargo in a directory that is not on the PATH of a shell started before.
ensure_cargo() {
    have cargo || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    have cargo || die "no Rust toolchain found; install one, then start again:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
}

# Prints the directory of the newest PostgreSQL server programs.
find_postgres_bin() {
    local directory
    while read -r directory; do
        if [[ -x $directory/initdb && -x $directory/postgres ]]; then
            echo "$directory"
            return
        fi
    done < <(
        printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV
        have initdb && dirname "$(readlink -f "$(command -v initdb)")"
    )
    return 1
}

# Prints a java of at least version 17, which need not be the one on the PATH.
find_java() {
    local java major
    for java in "${JAVA_HOME:+$JAVA_HOME/bin/java}" "$(command -v java || true)" /usr/lib/jvm/*/bin/java; do
        [[ -x $java ]] || continue
        major="$("$java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p;q')"
        if ((${major:-0} >= 17)); then
            echo "$java"
            return
        fi
    done
    return 1
}

# Python with venv and pip, for uv.
need_python() {
    python3 -c 'import ensurepip' 2>/dev/null || MISSING+=(python3 python3-venv)
}

# node 20 or newer.
need_node() {
    have npm && node -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)' || MISSING+=(nodejs npm)
}
