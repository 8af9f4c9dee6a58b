# The root filesystem's tree, which both kinds of image begin with: make_tree makes $root of $suite for $kind, and sets $kernel, $initrd,
# $command_line and $os.

make_tree() {
	local packages=(
		systemd systemd-sysv systemd-resolved systemd-timesyncd dbus udev
		"$kernel_package" initramfs-tools zstd
		grub-efi-amd64 grub-efi-amd64-signed shim-signed
		cloud-init cloud-guest-utils fdisk gdisk e2fsprogs
		openssh-server sudo netbase iproute2 iputils-ping ca-certificates less nano
	)
	if [ "$kind" = rootfs ]; then
		packages+=(
			mdadm lvm2 thin-provisioning-tools cryptsetup-initramfs btrfs-progs xfsprogs dosfstools
			busybox clevis-luks clevis-tpm2 clevis-initramfs
		)
		# The generator that opens what is not needed for the root was split off after Debian 12.
		[ "$release" = debian-12 ] || packages+=(systemd-cryptsetup)
	fi

	# Before the packages: their scripts ask debconf, and their triggers make the initial RAM filesystem.
	cat >"$work/debconf" <<-END
		grub-efi-amd64 grub2/update_nvram boolean false
		grub-efi-amd64 grub2/force_efi_extra_removable boolean true
	END
	local files=("$recipe/files")
	[ "$kind" = disk ] || files+=("$recipe/files-rootfs")
	local hooks=(--essential-hook="chroot \"\$1\" debconf-set-selections <'$work/debconf'")
	local folder
	for folder in "${files[@]}"; do
		hooks+=(--essential-hook="mkdir -p \"\$1/etc/initramfs-tools\" && cp -r '$folder/etc/initramfs-tools/.' \"\$1/etc/initramfs-tools/\"")
	done

	echo "build: installing packages of $suite" >&2
	mmdebstrap --mode=root --variant=minbase --quiet \
		--include="$(IFS=,; echo "${packages[*]}")" \
		--aptopt='Acquire::Languages "none"' \
		--aptopt='Acquire::Retries "3"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-include=/usr/share/doc/*/copyright' \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/info/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		"${hooks[@]}" \
		"$suite" "$root"

	echo "build: configuring" >&2
	for folder in "${files[@]}"; do
		cp -r --no-preserve=ownership "$folder/." "$root/"
	done
	forget_build_host
	configure

	kernel=$(cd "$root/boot" && ls vmlinuz-* | sort -V | tail -n1)
	initrd=initrd.img-${kernel#vmlinuz-}
	[ -s "$root/boot/$initrd" ] || fail "$kernel has no $initrd"
	command_line='ro console=tty0 console=ttyS0,115200 quiet'
	os=$(
		. "$root/etc/os-release"
		printf '{"id": "%s", "version": "%s", "pretty_name": "%s"}' "$ID" "$(cat "$root/etc/debian_version")" "$PRETTY_NAME"
	)
}

# What mmdebstrap left of the build host: its mirror (cloud-init writes the public one), its options, its name; and what each machine's first
# boot makes anew.
forget_build_host() {
	rm -f "$root/etc/apt/sources.list" "$root"/etc/apt/sources.list.d/* "$root/etc/apt/apt.conf.d/99mmdebstrap" \
		"$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap" "$root/etc/hostname" "$root/etc/resolv.conf"
	ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
	echo debian >"$root/etc/hostname"
	printf '127.0.0.1\tlocalhost\n127.0.1.1\tdebian\n::1\tlocalhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"

	: >"$root/etc/machine-id"
	rm -f "$root/var/lib/dbus/machine-id" "$root"/etc/ssh/ssh_host_* "$root/var/lib/systemd/random-seed"
	rm -rf "$root"/var/log/*.log "$root"/var/log/apt "$root"/var/cache/debconf/*-old
}

configure() {
	systemctl --root="$root" enable systemd-networkd.service systemd-resolved.service systemd-timesyncd.service ssh.service
	# Work on a timer is the customer's to ask for; the rest is slow at boot and of no use here.
	local unit
	for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service; do
		[ ! -e "$root/usr/lib/systemd/system/$unit" ] && [ ! -e "$root/lib/systemd/system/$unit" ] || systemctl --root="$root" disable "$unit"
	done
	systemctl --root="$root" mask networking.service systemd-networkd-wait-online@.service
	if [ "$kind" = rootfs ]; then
		systemctl --root="$root" enable bloomery-waiting-arrays.service
		# For whoever makes the initial RAM filesystem anew in the installed system: the volumes' keys that must be in it lie there.
		echo 'KEYFILE_PATTERN="/etc/cryptsetup-keys.d/*.key"' >>"$root/etc/cryptsetup-initramfs/conf-hook"
	fi

	mkdir -p "$root/boot/efi" "$root/boot/grub"
	echo 'LANG=C.UTF-8' >"$root/etc/default/locale"

	# Nothing has changed under /usr since these were made: the first boot need not compile the hardware database and the caches again.
	touch "$root/etc/.updated" "$root/var/.updated"
}
