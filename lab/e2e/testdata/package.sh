#!/bin/sh
# Runs as root in a virtual machine, from the volume that holds the packages: installs Bloomery, starts it, upgrades it, restores it and
# removes it. Says on the console how it ended, and switches the machine off.
here=$(dirname "$0")
say() { echo "PACKAGE-TEST $*" >/dev/ttyS0; }
step() { now=$1; say "at $(cut -d' ' -f1 /proc/uptime) s: $1"; }
ended() {
	status=$?
	if [ "$status" -ne 0 ]; then
		{
			tail -n 30 /run/package-test.log
			systemctl status --no-pager --lines 20 bloomery.service
		} >/dev/ttyS0 2>&1
		say "FAILED: $now"
	fi
	sync
	systemctl poweroff --force --force
}
trap ended EXIT
exec >/run/package-test.log 2>&1
set -eux
export LC_ALL=C.UTF-8 BLOOMERY_CONFIG=/var/lib/bloomery/pki/config.yaml DEBIAN_FRONTEND=noninteractive
main_pid() { systemctl show --property MainPID --value bloomery.service; }

step 'install the first version'
# This machine has no network to wait for.
systemctl mask --runtime systemd-networkd-wait-online.service
dpkg --install "$here"/lib/*.deb
dpkg --install "$here"/bloomery_1_*.deb | tee /run/first.log
grep 'not started, there is no /etc/bloomery/bloomeryd.yaml' /run/first.log
[ "$(systemctl is-enabled bloomery.service)" = enabled ]
[ "$(stat -c %U:%G:%a /var/lib/bloomery)" = bloomery:bloomery:700 ]
[ "$(stat -c %U:%G:%a /etc/bloomery)" = root:bloomery:750 ]
# Without a configuration a start does nothing, and that is no failure.
systemctl start bloomery.service
[ "$(systemctl is-active bloomery.service || true)" = inactive ]

step 'make a rack and start it'
ip link add prov0 type veth peer name prov1
ip address add 10.66.0.1/24 dev prov0
ip link set prov0 up
ip link set prov1 up
runuser -u bloomery -- bloomery rack init --dir /var/lib/bloomery/pki --name vm --server-address 127.0.0.1 --socket /run/bloomery/api.sock
runuser -u bloomery -- mkdir /var/lib/bloomery/agent-image
cat >/etc/bloomery/bloomeryd.yaml <<END
data: /var/lib/bloomery
listen:
  api: ["unix:/run/bloomery/api.sock", "127.0.0.1:8443"]
  boot: 10.66.0.1:80
  tftp: 10.66.0.1:69
provisioning: {interface: prov0, address: 10.66.0.1/24, range: 10.66.0.100-10.66.0.199}
agent_image: /var/lib/bloomery/agent-image
networks:
  - {name: provisioning, vlan: 100}
  - {name: quarantine, vlan: 999}
END
runuser -u bloomery -- bloomeryd check
systemctl start bloomery.service
systemctl is-active bloomery.service
[ "$(stat -c %U:%G:%a /run/bloomery/api.sock)" = bloomery:bloomery:660 ]
echo a-password >/run/bmc.secret
bloomery machine add node1 --mac 52:54:00:10:00:01 --bmc 10.65.0.11 --bmc-user admin --bmc-password-file /run/bmc.secret
first=$(main_pid)
[ "$(ps -o user= -p "$first")" = bloomery ]
# It has what it needs of root's rights and no more: ports 67, 69 and 80 are open, CAP_NET_BIND_SERVICE is 0x400, CAP_NET_RAW 0x2000.
grep -E 'CapEff:\s0000000000002400' "/proc/$first/status"
ss -lun | grep ':67 '
say "exposure: $(systemd-analyze security --no-pager bloomery.service | tail -n 1 | tr -cd ' -~')"

step 'upgrade to the second version'
sed -i 's/^BLOOMERYD_OPTIONS=.*/BLOOMERYD_OPTIONS="--debug"/' /etc/default/bloomery
dpkg --install "$here"/bloomery_2_*.deb
[ "$(dpkg-query -W -f '${Version}' bloomery)" = 2 ]
systemctl is-active bloomery.service
second=$(main_pid)
[ "$second" != "$first" ]
tr '\0' ' ' <"/proc/$second/cmdline" | grep -- --debug
bloomery machine show node1
[ "$(stat -c %U:%G:%a /etc/bloomery)" = root:bloomery:750 ]

step 'back up, and restore into an empty node'
echo 'correct horse battery' >/run/backup.secret
bloomery rack backup --out /run/vm.backup --passphrase-file /run/backup.secret
systemctl stop bloomery.service
mv /var/lib/bloomery /var/lib/bloomery.old
install -d -m 0700 -o bloomery -g bloomery /var/lib/bloomery /var/lib/bloomery/agent-image
chown bloomery /run/vm.backup
runuser -u bloomery -- bloomery rack restore /run/vm.backup --passphrase-file - </run/backup.secret
systemctl start bloomery.service
BLOOMERY_CONFIG=/var/lib/bloomery.old/pki/config.yaml bloomery machine show node1

step 'leave stopped what is stopped'
systemctl stop bloomery.service
/var/lib/dpkg/info/bloomery.postinst configure 2
[ "$(systemctl is-active bloomery.service || true)" = inactive ]

step 'remove and purge'
systemctl start bloomery.service
dpkg --remove bloomery
[ "$(systemctl is-active bloomery.service || true)" = inactive ]
[ -e /etc/default/bloomery ]
dpkg --purge bloomery
[ ! -e /etc/default/bloomery ]
[ -d /var/lib/bloomery/dqlite ]

step 'install beside an earlier rack, and remove that too'
dpkg --install "$here"/bloomery_2_*.deb
systemctl is-active bloomery.service
BLOOMERY_PURGE_DATA=yes dpkg --purge bloomery
[ ! -e /var/lib/bloomery ]
step 'end'
say PASSED
