# The disk kind: GPT with an ESP and the root.

esp_start_mib=1
esp_mib=64
root_start_mib=$((esp_start_mib + esp_mib))
root_mib=$((size_mib - root_start_mib - 1)) # the last MiB holds the backup partition table

# uuid NAME prints the UUID of that thing of the image.
uuid() {
	if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
		cat /proc/sys/kernel/random/uuid
		return
	fi
	printf '%s %s %s' "$SOURCE_DATE_EPOCH" "$recipe_hash" "$1" | sha256sum |
		sed -E 's/^(.{8})(.{4}).(.{3}).(.{3})(.{12}).*/\1-\2-4\3-8\4-\5/'
}

make_disk() {
	local disk_guid esp_guid root_guid root_uuid esp_volume esp_uuid
	disk_guid=$(uuid disk)
	esp_guid=$(uuid esp)
	root_guid=$(uuid root)
	root_uuid=$(uuid root-fs)
	esp_volume=$(uuid esp-fs | tr -d - | cut -c1-8 | tr a-f A-F)
	esp_uuid=${esp_volume:0:4}-${esp_volume:4:4}
	command_line="root=UUID=$root_uuid $command_line"

	# By automount: the ESP is needed when the boot loader is upgraded, not at every boot.
	cat >"$root/etc/fstab" <<-END
		UUID=$root_uuid / ext4 defaults,errors=remount-ro 0 1
		UUID=$esp_uuid /boot/efi vfat umask=0077,noauto,x-systemd.automount,x-systemd.idle-timeout=60 0 0
	END
	cat >"$root/boot/grub/grub.cfg" <<-END
		set timeout=0
		search --no-floppy --fs-uuid --set=root $root_uuid
		menuentry 'Debian GNU/Linux' {
			linux /boot/$kernel $command_line
			initrd /boot/$initrd
		}
	END

	echo "build: making the disk" >&2
	local disk=$work/out
	truncate -s "${size_mib}M" "$disk"
	sgdisk --clear --disk-guid="$disk_guid" \
		--new="1:${esp_start_mib}M:+${esp_mib}M" --typecode=1:C12A7328-F81F-11D2-BA4B-00A0C93EC93B \
		--change-name=1:esp --partition-guid="1:$esp_guid" \
		--new="2:${root_start_mib}M:+${root_mib}M" --typecode=2:4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709 \
		--change-name=2:root --partition-guid="2:$root_guid" \
		"$disk" >/dev/null
	make_esp "$root_uuid" "$esp_volume"
	dd if="$work/esp" of="$disk" bs=1M seek="$esp_start_mib" conv=notrunc,sparse status=none

	# Features that the boot loaders and rescue systems of the day cannot read are left out.
	mkfs.ext4 -q -F -d "$root" -L root -U "$root_uuid" -m 1 -O '^orphan_file,^metadata_csum_seed' \
		-E "offset=$((root_start_mib * 1048576)),lazy_itable_init=0,lazy_journal_init=0,nodiscard" \
		"$disk" "${root_mib}M"

	cat >"$work/meta.json" <<-END
		{
		  "os": $os,
		  "boot": {
		    "root_partition": 2,
		    "root_partition_guid": "$root_guid",
		    "esp_partition": 1,
		    "kexec": true,
		    "kernel": "/boot/$kernel",
		    "initrd": "/boot/$initrd",
		    "cmdline": "$command_line",
		    "min_memory": 402653184
		  }
		}
	END
}

# make_esp ROOT_UUID VOLUME_ID makes $work/esp. Debian's signed GRUB reads EFI/debian/grub.cfg wherever it was started from.
make_esp() {
	local esp=$work/esp folder
	truncate -s "${esp_mib}M" "$esp"
	mkfs.vfat -F 32 -s 1 -n ESP -i "$2" "$esp" >/dev/null
	local shim=$root/usr/lib/shim/shimx64.efi.signed
	local grub=$root/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed
	cat >"$work/grub.cfg" <<-END
		search --no-floppy --fs-uuid --set=root $1
		set prefix=(\$root)/boot/grub
		configfile \$prefix/grub.cfg
	END
	mmd -i "$esp" ::/EFI ::/EFI/BOOT ::/EFI/debian
	for folder in BOOT:BOOTX64.EFI debian:shimx64.efi; do
		mcopy -i "$esp" "$shim" "::/EFI/${folder%%:*}/${folder##*:}"
		mcopy -i "$esp" "$grub" "::/EFI/${folder%%:*}/grubx64.efi"
	done
	mcopy -i "$esp" "$root/usr/lib/shim/mmx64.efi.signed" ::/EFI/debian/mmx64.efi
	mcopy -i "$esp" "$work/grub.cfg" ::/EFI/debian/grub.cfg
}
