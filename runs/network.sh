#!/usr/bin/env bash
# Runs a command on several simulated hosts with a slow network between them, to measure training on
# several machines with only one.
#
#   runs/network.sh N RATE LATENCY -- COMMAND…
#
#   N         the number of hosts; each is a network namespace with a cable to a common switch
#   RATE      how fast a host can send, as in tc(8): 100mbit, 1gbit, …; none for no limit
#   LATENCY   how long a message takes one way: 1ms, …; none for no delay
#   COMMAND   if it starts with mpirun, it starts one rank on each host, and the ranks communicate
#             by TCP only; any other command is started once on each host, with the variables that
#             PyTorch reads (RANK, MASTER_ADDR, …)
#
#   runs/network.sh 2 100mbit none -- mpirun target/release/tessera train prior --threads 1 …
#   runs/network.sh 2 100mbit none -- python benches/peers/ddp.py
#
# The last line of the output is JSON, with the bytes that each host has sent and received. The
# hosts share the files, the memory and the cores of this machine, so a rank should use its part of
# the cores. The script needs root, iproute2, and for a latency a kernel with netem.
set -euo pipefail

die() { echo "network: $*" >&2; exit 2; }
[ $# -ge 5 ] && [ "$4" = -- ] ||
  die "wanted the number of hosts, a rate, a latency and a command: runs/network.sh 2 100mbit none -- COMMAND"
hosts=$1 rate=$2 latency=$3
shift 4
[[ $hosts =~ ^[1-9][0-9]?$ ]] || die "wanted 1 to 99 hosts, got \"$hosts\""
[ "$(id -u)" -eq 0 ] || die "only root can make network namespaces; start the script with sudo"
for tool in ip tc unshare; do
  command -v "$tool" >/dev/null || die "$tool is not installed; it is in the package iproute2 or util-linux"
done

prefix=network-$$ # of the names of namespaces; two runs of this script do not disturb each other
work=$(mktemp -d)

# Ends what still runs on the hosts, and removes them.
cleanup() {
  local name signal
  trap '' HUP INT TERM
  for signal in TERM KILL; do
    for name in $(names); do ip netns pids "$name" | xargs -r kill -s "$signal" 2>/dev/null || true; done
    for _ in {1..30}; do running || break; sleep 0.1; done
  done
  for name in $(names); do ip netns delete "$name"; done
  rm -rf "$work"
}
names() { ip netns list | grep -o "^$prefix-[^ ]*"; }
running() { for name in $(names); do ip netns pids "$name"; done | grep -q .; }
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM

# 1. The switch has a namespace of its own, so that firewall rules of this machine do not apply.
ip netns add "$prefix-switch"
in_switch=(ip netns exec "$prefix-switch")
"${in_switch[@]}" ip link add switch type bridge
"${in_switch[@]}" ip link set switch up

# 2. The hosts have the addresses 10.77.0.1, 10.77.0.2, … Without a link-local address of IPv6, a
#    program cannot choose that one.
for ((i = 1; i <= hosts; i++)); do
  name=$prefix-10.77.0.$i
  ip netns add "$name"
  "${in_switch[@]}" ip link add "port$i" type veth peer name eth0 netns "$name"
  "${in_switch[@]}" ip link set "port$i" master switch up
  ip -n "$name" link set eth0 addrgenmode none
  ip -n "$name" address add "10.77.0.$i/24" dev eth0
  ip -n "$name" link set lo up
  ip -n "$name" link set eth0 up
  [ "$rate" = none ] ||
    ip netns exec "$name" tc qdisc add dev eth0 root tbf rate "$rate" burst 128kb latency 100ms ||
    die "tc does not take the rate \"$rate\"; wanted one such as 100mbit, 1gbit or none"
  [ "$latency" = none ] ||
    "${in_switch[@]}" tc qdisc add dev "port$i" root netem delay "$latency" limit 1000000 ||
    die "tc cannot delay messages by \"$latency\"; wanted a time such as 1ms and a kernel with netem, or none"
done

# 3. `on ADDRESS COMMAND` runs a command line on a host. It is a program because mpirun uses it in
#    place of ssh.
cat >"$work/on" <<END
#!/usr/bin/env bash
exec ip netns exec "$prefix-\$1" unshare --uts bash -c "hostname host\${1##*.}; \${*:2}"
END
chmod +x "$work/on"

# Starts one rank on each host with mpirun. The variables are options of OpenMPI. All hosts have the
# same cores, so ranks are not bound to some, and waiting ranks let others run.
mpi() {
  for ((i = 1; i <= hosts; i++)); do echo "10.77.0.$i slots=1"; done >"$work/hosts"
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  export OMPI_MCA_orte_default_hostfile=$work/hosts OMPI_MCA_orte_keep_fqdn_hostnames=1
  export OMPI_MCA_plm_rsh_agent=$work/on OMPI_MCA_oob_tcp_if_include=eth0
  export OMPI_MCA_pml=ob1 OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=eth0
  export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1
  "$work/on" 10.77.0.1 "${*@Q}" &
}

# Starts a command on each host, with the variables that PyTorch reads.
each() {
  export MASTER_ADDR=10.77.0.1 MASTER_PORT=29500 WORLD_SIZE=$hosts GLOO_SOCKET_IFNAME=eth0
  for ((i = 1; i <= hosts; i++)); do RANK=$((i - 1)) "$work/on" "10.77.0.$i" "${*@Q}" & done
}

# 4. The first process that fails ends the others.
SECONDS=0
if [ "${1##*/}" = mpirun ]; then mpi "$@"; else each "$@"; fi
while [ -n "$(jobs -p)" ]; do
  code=0
  wait -n || code=$?
  [ $code -eq 0 ] || { echo "network: a process ended with code $code" >&2; exit $code; }
done

# count COUNTER: prints a counter of all hosts' interfaces, separated by commas.
count() {
  for ((i = 1; i <= hosts; i++)); do
    ip netns exec "$prefix-10.77.0.$i" cat "/sys/class/net/eth0/statistics/$1"
  done | paste -sd ,
}
printf '{"hosts":%d,"rate":"%s","latency":"%s","seconds":%d,"bytes_sent":[%s],"bytes_received":[%s]}\n' \
  "$hosts" "$rate" "$latency" $SECONDS "$(count tx_bytes)" "$(count rx_bytes)"
