#!/bin/sh
# Installs the Debian packages given as arguments, and lets no service that comes with them start: neither now
# (policy-rc.d, see invoke-rc.d(8)) nor, for a database server that was not here before, at the next boot.
# Run as root. A policy-rc.d that was there is put back, also after an interrupt and, at the next run, after a kill.
set -eu

PATH=$PATH:/usr/sbin:/sbin
export PATH
export DEBIAN_FRONTEND=noninteractive
# Ubuntu's needrestart would otherwise restart services that have nothing to do with us.
export NEEDRESTART_SUSPEND=1

# The variable is for the tests of this script.
policy=${FARSITE_POLICY_RC_D:-/usr/sbin/policy-rc.d}
saved=$policy.before-farsite
mark='# Written by install-debian.sh of Farsite, which removes it when it ends.'

[ $# -gt 0 ] || { echo "usage: install-debian.sh PACKAGE..." >&2; exit 2; }

# Two runs at once would take each other's policy for the one that was there. The lock is on the folder itself, so
# that no lock file is left behind.
exec 9<"$(dirname "$policy")"
flock -w 900 9 || { echo "install-debian.sh: another run has held the lock for 15 minutes" >&2; exit 1; }

restore() {
    if [ -e "$saved" ] || [ -L "$saved" ]; then
        mv -f "$saved" "$policy"
    elif [ -f "$policy" ] && grep -qxF "$mark" "$policy"; then
        rm -f "$policy"
    fi
    rm -f "$policy.new-farsite"
}

restore
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# 101: "action forbidden by policy".
printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy.new-farsite"
chmod 755 "$policy.new-farsite"
if [ -e "$policy" ] || [ -L "$policy" ]; then mv "$policy" "$saved"; fi
mv "$policy.new-farsite" "$policy"

server_installed() {
    dpkg-query -W -f='${Status}\n' mariadb-server 2>/dev/null | grep -qx 'install ok installed'
}
if server_installed; then had_server=yes; else had_server=no; fi

# --no-remove: better to fail than to take away another database server that somebody uses.
net='-o Acquire::Retries=3 -o Acquire::http::Timeout=60 -o Acquire::https::Timeout=60 -o DPkg::Lock::Timeout=300'
# shellcheck disable=SC2086 # $net is a list of words
apt-get -q $net update 9<&-
# shellcheck disable=SC2086
apt-get -qy $net -o DPkg::Options::=--force-confdef -o DPkg::Options::=--force-confold \
    --no-install-recommends --no-remove install "$@" 9<&-

if [ $had_server = no ] && server_installed && command -v systemctl >/dev/null; then
    echo "mariadb.service will not start by itself; to have it: systemctl enable --now mariadb" >&2
    systemctl --quiet disable mariadb.service || true
fi
