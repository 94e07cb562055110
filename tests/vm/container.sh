# Runs the image in $1, a tar of a root folder, as a container. Its layers and network are as Docker
# makes them. $2 is a host and port of the internet. Needs root, runc and iptables.
set -eu
modprobe -a overlay br_netfilter
# The layers get a disk of their own, since no overlay can be the upper layer of another one.
truncate -s 64M /var/layers.img
mkfs.ext4 -q /var/layers.img
mkdir -p /var/layers
mount -o loop /var/layers.img /var/layers
cd /var/layers
mkdir image upper work rootfs
tar -xf "$1" -C image
mount -t overlay -o "lowerdir=$PWD/image,upperdir=$PWD/upper,workdir=$PWD/work" overlay rootfs

ip link add br0 type bridge
ip address add 172.18.0.1/24 dev br0
ip link set br0 up
ip netns add c1
ip link add veth0 type veth peer name eth0 netns c1
ip link set veth0 master br0 up
ip -n c1 address add 172.18.0.2/24 dev eth0
ip -n c1 link set eth0 up
ip -n c1 route add default via 172.18.0.1
echo 1 >/proc/sys/net/ipv4/ip_forward
iptables-nft -t nat -A POSTROUTING -s 172.18.0.0/24 ! -o br0 -j MASQUERADE
iptables-nft -P FORWARD DROP
iptables-nft -A FORWARD -i br0 ! -o br0 -j ACCEPT
iptables-nft -A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -m comment --comment x -j RETURN
# Some images of Docker use iptables' older kind.
iptables-legacy -t nat -L -n >/dev/null 2>&1

runc spec
python3 - "$2" <<'END'
import json, sys
config = json.load(open("config.json"))
script = "busybox id -u; busybox cat /sys/fs/cgroup/memory.max; busybox echo x >/new; busybox nc " + sys.argv[1]
config["process"].update(terminal=False, args=["/bin/busybox", "sh", "-c", script])
config["root"]["readonly"] = False
linux = config["linux"]
linux["cgroupsPath"] = "/docker/c1"
linux.setdefault("resources", {}).update(memory={"limit": 64 << 20}, pids={"limit": 32})
for namespace in linux["namespaces"]:
    if namespace["type"] == "network":
        namespace["path"] = "/run/netns/c1"
json.dump(config, open("config.json", "w"))
END
runc run c1 </dev/null
cat upper/new
