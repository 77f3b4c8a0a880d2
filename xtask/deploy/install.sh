#!/bin/sh
# Installs Orlop on this machine from the folder that this script is in: executables, CNI plugins, systemd units, settings.
# Settings that exist are kept; everything else is replaced. Called again with a newer folder it is the upgrade.
set -eu

usage() {
    cat <<'USAGE'
usage: install.sh [OPTIONS] PART…

PART is `server` (the control plane), `agent` (a node), or both.

  --node-name NAME      name of this node; the host name when it is not given
  --address IP          address that others reach this machine at; that of the default route when it is not given
  --cluster-cidr CIDR   network of all pods of the cluster; 10.244.0.0/16 when it is not given
  --images DIR          folder with OCI archives that the node imports at start
  --credentials DIR     for a node without a server: what `orlop-server node-credentials` wrote there
USAGE
}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

server=no agent=no node=$(uname -n) address= cidr=10.244.0.0/16 images= credentials=
while [ $# -gt 0 ]; do
    case $1 in
        server) server=yes ;;
        agent) agent=yes ;;
        -h | --help) usage; exit ;;
        --node-name | --address | --cluster-cidr | --images | --credentials)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case $1 in
                --node-name) node=$2 ;;
                --address) address=$2 ;;
                --cluster-cidr) cidr=$2 ;;
                --images) images=$2 ;;
                --credentials) credentials=$2 ;;
            esac
            shift ;;
        *) usage >&2; fail "unknown argument: $1" ;;
    esac
    shift
done

[ "$server$agent" != nono ] || { usage >&2; fail "say which parts: server, agent, or both"; }
[ "$(id -u)" = 0 ] || fail "run it as root"
[ -d /run/systemd/system ] || fail "systemd does not run on this machine"
here=$(cd "$(dirname "$0")/.." && pwd)
[ -n "$address" ] || address=$(ip -4 -o route get 192.0.2.1 | sed -n 's/.* src \([0-9.]*\).*/\1/p')
[ -n "$address" ] || fail "this machine has no default route: give --address"
if [ $agent = yes ] && [ $server = no ] && [ ! -f /etc/orlop/credentials/kubeconfig ] && [ -z "$credentials" ]; then
    fail "a node needs --credentials: run \`orlop-server node-credentials\` where the server is"
fi

# A running executable cannot be written to, but its name can be given to another file.
put() {
    install -D -m "$1" "$2" "$3.new"
    mv "$3.new" "$3"
}

# Keeps a file that the machine's administrator may have changed.
write_new() {
    if [ -e "$1" ]; then
        cat > /dev/null
        echo "kept: $1"
    else
        mkdir -p "$(dirname "$1")"
        cat > "$1.new"
        mv "$1.new" "$1"
        echo "written: $1"
    fi
}

install_server() {
    put 755 "$here/bin/orlop-server" /usr/local/bin/orlop-server
    put 644 "$here/deploy/orlop-server.service" /etc/systemd/system/orlop-server.service
    write_new /etc/orlop/server.env <<SETTINGS
ORLOP_SERVER_FLAGS="--advertise-address $address --cluster-cidr $cidr"
SETTINGS
}

install_agent() {
    for program in orlop-agent orlop-shim orlopctl; do
        put 755 "$here/bin/$program" "/usr/local/bin/$program"
    done
    for plugin in "$here"/cni/*; do
        put 755 "$plugin" "/opt/cni/bin/$(basename "$plugin")"
    done
    put 644 "$here/deploy/orlop-agent.service" /etc/systemd/system/orlop-agent.service
    mkdir -p -m 700 /etc/orlop/credentials
    if [ -n "$credentials" ]; then
        cp "$credentials"/* /etc/orlop/credentials/
    elif [ $server = yes ] && [ ! -f /etc/orlop/credentials/kubeconfig ]; then
        orlop-server node-credentials --data-dir /var/lib/orlop/server --node "$node" --address "$address" \
            --server "https://$address:6443" --out /etc/orlop/credentials
    fi
    {
        cat <<SETTINGS
nodeName: $node
nodeIp: $address
kubeconfig: /etc/orlop/credentials/kubeconfig
tlsCertFile: /etc/orlop/credentials/kubelet.crt
tlsPrivateKeyFile: /etc/orlop/credentials/kubelet.key
clientCaFile: /etc/orlop/credentials/client-ca.crt
clusterCidr: $cidr
SETTINGS
        [ -z "$images" ] || echo "imageArchivesDir: $images"
    } | write_new /etc/orlop/agent.yaml
}

start() {
    systemctl enable --quiet "$1"
    systemctl restart "$1"
    echo "started: $1"
}

[ $server = no ] || install_server
[ $agent = no ] || install_agent
systemctl daemon-reload
[ $server = no ] || start orlop-server.service
[ $agent = no ] || start orlop-agent.service
[ $server = no ] || echo "the administrator's kubeconfig: /var/lib/orlop/server/admin.kubeconfig"
