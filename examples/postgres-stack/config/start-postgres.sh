# The first start makes the cluster and the application's role; later ones find them in the volume.
set -eu
bin=/usr/lib/postgresql/15/bin
data=/var/lib/postgresql/data/15

if [ ! -s "$data/PG_VERSION" ]; then
	rm -rf "$data.new"
	"$bin/initdb" -D "$data.new" -U postgres -A trust -E UTF8 --locale=C.UTF-8
	printf 'CREATE ROLE notes LOGIN;\n' | "$bin/postgres" --single -D "$data.new" postgres
	printf 'CREATE DATABASE notes OWNER notes;\n' | "$bin/postgres" --single -D "$data.new" postgres
	mv "$data.new" "$data"
fi

exec "$bin/postgres" -D "$data" -c config_file=/etc/postgresql/invar.conf
