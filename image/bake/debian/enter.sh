# $0 root, $1 directory of packages, $2 source date (seconds)
mount --make-rprivate /
mount -t proc proc "$0/proc"
mount -t tmpfs -o mode=0755 tmpfs "$0/dev"
for n in null zero full random urandom tty; do
	: >"$0/dev/$n"
	mount --bind "/dev/$n" "$0/dev/$n"
done
ln -s /proc/self/fd "$0/dev/fd"
mkdir "$0/dev/shm"
mount --bind "$1" "$0/debs"
mount -o remount,ro,bind "$0/debs"
hostname localhost
umask 022
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TZ=UTC \
	DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true \
	SOURCE_DATE_EPOCH="$2" PERL_HASH_SEED=0 PYTHONHASHSEED=0 \
	chroot "$0" sh -ec '
		cd /
		for d in /debs/1 /debs/2; do
			[ "$(echo $d/*.deb)" = "$d/*.deb" ] || dpkg --force-depends --force-unsafe-io --log=/dev/null --install $d/*.deb
		done' </dev/null
