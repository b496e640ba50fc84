# shellcheck shell=sh
# check-config.sh ETC DAEMON: would the daemon take its configuration, with what is yet to be
# written? Read are "true" or "false", whether there will be a drop-in of ours; then lines of a
# name below ETC and what is to be in that file, in base64. Nothing of ETC is changed: files can
# be at odds with one another, so all of them are laid out in a folder of their own.
set -eu
umask 077
etc=$1 daemon=$2 ours=gpuvirtd.d/50-ansible.yaml
read -r given
[ "$given" = true ] || [ -e "$etc/$ours" ] || exit 0
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
mkdir "$new/gpuvirtd.d" "$new/tls"
: >"$new/gpuvirtd.yaml"
for file in "$etc"/gpuvirtd.yaml "$etc"/gpuvirtd.d/*.yaml; do
	[ "$file" != "$etc/$ours" ] || continue
	if [ -e "$file" ] || [ -L "$file" ]; then
		cat "$file" >"$new${file#"$etc"}"
	fi
done
for file in "$etc"/tls/*; do
	[ ! -e "$file" ] || ln -s "$file" "$new/tls/"
done
while read -r file content; do
	[ -n "$file" ] || continue
	rm -f "$new/$file"
	printf '%s' "$content" | base64 -d >"$new/$file"
done
find "$new" -name '*.yaml' -exec sed -i "s|$etc/tls/|$new/tls/|g" {} +
said=$("$daemon" check-config --config "$new/gpuvirtd.yaml" 2>&1 >/dev/null) || {
	printf '%s\n' "$said" | sed "s|$new/|$etc/|g" >&2
	exit 1
}
