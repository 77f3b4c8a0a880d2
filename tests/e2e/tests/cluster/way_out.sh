#!/bin/sh
# Runs in a private host: an internet of one address behind its uplink, a registry on its loopback, a cluster with a mirror.
set -eu

kubectl="${ORLOP_KUBECTL:-kubectl} --kubeconfig $TARGET/up/admin.kubeconfig"
forwarding=/proc/sys/net/ipv4/conf/wan/forwarding
folder=$(mktemp -d)
go=$folder/go
mkfifo "$go"

# The internet: 203.0.113.7 answers with the address it is asked from. It lives as long as its server.
unshare --net sh -c 'read -r _ && exec "$TARGET/static/release/echo" serve 80' <"$go" >/dev/null &
server=$!
exec 3>"$go"
until [ "$(readlink /proc/$server/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
internet="nsenter --target $server --net ip"
ip link add wan type veth peer name wan netns $server
ip addr add 192.0.2.2/24 dev wan
ip link set wan up
echo 0 >$forwarding
$internet addr add 192.0.2.1/24 dev wan
$internet addr add 203.0.113.7/32 dev lo
$internet link set lo up
$internet link set wan up
ip route add default via 192.0.2.1
echo go >&3
exec 3>&-

# A registry on loopback, with the echo image under a name that only docker.io has.
storage=$folder/storage/docker/registry/v2
repository=$storage/repositories/library/from-mirror
mkdir -p "$folder/image"
tar -xf "$TARGET/images/echo.tar" -C "$folder/image"
for blob in "$folder"/image/blobs/sha256/*; do
    name=$(basename "$blob")
    place=$storage/blobs/sha256/$(echo "$name" | cut -c1-2)/$name
    mkdir -p "$place" "$repository/_layers/sha256/$name"
    cp "$blob" "$place/data"
    printf 'sha256:%s' "$name" >"$repository/_layers/sha256/$name/link"
done
manifest=$(grep -o '"digest":"sha256:[0-9a-f]*"' "$folder/image/index.json" | head -n 1 | grep -o '[0-9a-f]\{64\}')
mkdir -p "$repository/_manifests/revisions/sha256/$manifest" "$repository/_manifests/tags/v1/current"
printf 'sha256:%s' "$manifest" >"$repository/_manifests/revisions/sha256/$manifest/link"
printf 'sha256:%s' "$manifest" >"$repository/_manifests/tags/v1/current/link"
cat >"$folder/registry.yml" <<END
version: 0.1
log: { level: error }
storage: { filesystem: { rootdirectory: $folder/storage } }
http: { addr: "127.0.0.1:5000" }
END
"$REGISTRY" serve "$folder/registry.yml" >/dev/null 2>&1 &
registry=$!

cargo xtask up --debug --no-build --registry-mirror docker.io=http://127.0.0.1:5000
[ "$(cat $forwarding)" = 1 ]
nft list table ip orlop

# A pull by the mirror, a request through the host, and its answer: the host's own address is all that the internet sees.
$kubectl run out --image=docker.io/library/from-mirror:v1 --restart=Never -- get 203.0.113.7:80
$kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/out --timeout=60s
$kubectl logs out | grep ' 192.0.2.2$'
$kubectl delete pod/out --timeout=60s

# The same once more after a kill of the relay: `up` starts what is dead.
kill -9 "$(pgrep -f 'machine relay 127.0.0.1:5000')"
cargo xtask up --debug --no-build --registry-mirror docker.io=http://127.0.0.1:5000
pgrep -f 'machine relay 127.0.0.1:5000'
if cargo xtask up --debug --no-build; then
    echo "up accepted other options" >&2
    exit 1
fi

cargo xtask down
[ "$(cat $forwarding)" = 0 ]
if nft list table ip orlop 2>/dev/null; then
    echo "the table is still there" >&2
    exit 1
fi
kill $server $registry
wait
ip link del wan 2>/dev/null || true
rm -r "$folder"
echo "everything was put back"
