#!/bin/sh
# Installs Debian packages, given as arguments, and leaves no other trace: no service is started, no database cluster
# is made. Without arguments it only renews the package lists. Runs as root.
set -eu
export DEBIAN_FRONTEND=noninteractive

policy=/usr/sbin/policy-rc.d
clusters=/etc/postgresql-common/createcluster.d
mark='outrigger xtask, temporary'
made_policy='' made_cluster='' made_dirs=''

# One at a time on this machine, without a lock file: others wait for the directory.
if command -v flock >/dev/null; then
    exec 9</usr/sbin
    flock 9
fi

cleanup() {
    [ -z "$made_policy" ] || rm -f "$policy"
    [ -z "$made_cluster" ] || rm -f "$clusters/outrigger-xtask.conf"
    # Only while empty, and only if they were not there before.
    [ -z "$made_dirs" ] || rmdir -p "$clusters" 2>/dev/null || true
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

# "101: not allowed" to every start of a service. A file of somebody else says so already, or knows better; one of a
# run that was killed is ours.
if [ ! -e "$policy" ] || grep -q "$mark" "$policy"; then
    made_policy=1
    printf '#!/bin/sh\n# %s\nexit 101\n' "$mark" >"$policy"
    chmod 755 "$policy"
fi

for package in "$@"; do
    if [ "$package" = postgresql ]; then
        [ -d "$clusters" ] || made_dirs=1
        mkdir -p "$clusters"
        made_cluster=1
        printf '# %s\ncreate_main_cluster = false\n' "$mark" >"$clusters/outrigger-xtask.conf"
    fi
done

update() {
    # Somebody's broken extra source must not stand in the way of Debian's own.
    apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 update || echo 'apt-get update failed in part' >&2
}
get() {
    apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 install --no-install-recommends "$@"
}
known() {
    for package in "$@"; do
        LC_ALL=C apt-cache policy "$package" 2>/dev/null | grep -q 'Candidate: [^(]' || return 1
    done
}

if [ $# -eq 0 ]; then
    update
    exit 0
fi
known "$@" || update
# Old lists name files that the archive no longer has.
get "$@" || { update; get "$@"; }
