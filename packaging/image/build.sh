#!/bin/sh
# Makes the file system of the container image without an engine:
#     build.sh NFTFW IMAGE.tar
#     docker import -c 'ENTRYPOINT ["/nftfw"]' -c 'CMD ["run"]' IMAGE.tar nftfw
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/etc/nftfw" "$dir/run/nftfw" "$dir/var/lib/nftfw" "$dir/tmp"
cp "$1" "$dir/nftfw"
chmod 0755 "$dir/nftfw"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$2" -C "$dir" .
