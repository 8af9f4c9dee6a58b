# The rootfs kind: the tree as a tar archive. Everything that names a disk (fstab, crypttab, the boot loader) is written by the installer.

make_rootfs() {
	echo "build: making the archive" >&2
	rm -f "$root/etc/fstab" "$root/etc/crypttab" "$root/etc/mdadm/mdadm.conf"
	# What a running system mounts something on stays, but empty.
	find "$root/run" "$root/tmp" "$root/proc" "$root/sys" -mindepth 1 -delete
	# As extended attributes, access control lists keep their numbers; --acls would write names of the build host.
	tar --create --directory="$root" --format=posix --sort=name --numeric-owner --xattrs --xattrs-include='*' --sparse \
		--pax-option='delete=atime,delete=ctime' . | zstd -q -3 -T0 -o "$work/out"
	cat >"$work/meta.json" <<-END
		{
		  "kind": "rootfs",
		  "os": $os,
		  "boot": {
		    "kexec": true,
		    "kernel": "/boot/$kernel",
		    "initrd": "/boot/$initrd",
		    "cmdline": "$command_line",
		    "root_stacks": ["md", "lvm", "lvm-thin", "luks", "tpm2", "xfs", "btrfs"],
		    "min_memory": 402653184
		  }
		}
	END
}
