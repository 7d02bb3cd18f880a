#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what a task needs from the distribution's packages (Debian, Ubuntu).
#
#   deploy/setup.sh [build|test|generate|vm|bench|all]...     default: test
#
# It looks for commands and files first; when all are there it says so, changes
# nothing and needs no network. As a plain user it lists what is missing and ends
# with status 0: tests skip by name what they cannot run.
set -euo pipefail

# One line for each need: task, what to look for (a command, or a path), package, why.
needs() {
	cat <<-'EOF'
		test      curl                 curl            HTTP/1.1 and HTTP/2 client in the tests
		test      nghttp               nghttp2-client  HTTP/2 client in the tests
		test      h2load               nghttp2-client  HTTP/2 load in the tests
		test      wrk                  wrk             HTTP/1.1 load in the tests
		test      promtool             prometheus      checks the exposition on 9090
		test      prometheus           prometheus      scrapes the gateway in the tests
		test      bpftool              bpftool         shows that maps print with names
		test      ip                   iproute2        namespaces and links in the tests
		test      ethtool              ethtool         queues and offloads of test links
		test      awk                  mawk            the documented line on the access log
		test      nginx                nginx-light     a real upstream, and a peer
		test      haproxy              haproxy         balances over gateways, and a peer
		test      nft                  nftables        reads and lists the firewall's table
		test      buildah              buildah         builds the image
		test      strace               strace          makes system calls fail under a worker
		test      tmux                 tmux            a terminal for xgw top
		test      chromium             chromium        looks at the dashboard
		test      rsyslogd             rsyslog         receives syslog in the tests
		test      redis-server         redis-server    a real store that gateways share
		test      systemd-nspawn       systemd-container runs the package in a root of its own
		test      qemu-aarch64-static  qemu-user-static  runs what is built for arm64
		test      rpm                  rpm             reads and installs the package
		test      groff                groff-base      sets the manual pages
		test      clang-format-14      clang-format-14 the layout of the C code
		generate  clang-14             clang-14        compiles the BPF objects
		generate  llvm-strip-14        llvm-14         strips the BPF objects
		generate  /usr/include/bpf/bpf_helpers.h       libbpf-dev      headers of the BPF objects
		generate  /usr/include/linux/bpf.h             linux-libc-dev  headers of the BPF objects
		vm        qemu-system-x86_64   qemu-system-x86 runs the kernels of the matrix
		vm        /usr/share/doc/busybox-static       busybox-static  the first process of a virtual machine
		vm        debootstrap          debootstrap     makes the root that packages are installed into
		vm        file                 file            looks into kernel images
		vm        depmod               kmod            indexes the modules of a kernel
		vm        xz                   xz-utils        unpacks the modules of a kernel
		vm        /lib/systemd/systemd-udevd            udev            finds the devices in a virtual machine
		vm        /usr/lib/python3/dist-packages/argcomplete    python3-argcomplete   virtme-ng
		vm        /usr/lib/python3/dist-packages/requests       python3-requests      virtme-ng
		vm        /usr/lib/python3/dist-packages/pkg_resources  python3-pkg-resources virtme-ng
		bench     wrk                  wrk             HTTP/1.1 load
		bench     h2load               nghttp2-client  HTTP/2 load
		bench     nginx                nginx-light     a peer, and the upstream
		bench     haproxy              haproxy         a peer
		bench     ip                   iproute2        the namespaces of the lab
		bench     debootstrap          debootstrap     fetches the newest peers
		bench     xdp-filter           xdp-tools       a peer of the kernel plane
	EOF
}

say() { printf 'setup: %s\n' "$*"; }

# present tells whether a command or path is there; root's commands count for plain users too.
present() {
	case $1 in
	/*) [[ -e $1 ]] ;;
	*) PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
	esac
}

# The file that tells package scripts not to start services (Debian policy 9.3.3).
# One that exists is kept aside and put back.
policy=/usr/sbin/policy-rc.d
policy_made=
aside=

restore_policy() {
	[[ -n $policy_made ]] || return 0
	"${become[@]}" rm -f "$policy"
	if [[ -n $aside ]]; then "${become[@]}" mv "$aside" "$policy"; fi
	policy_made=
}

forbid_services() {
	trap restore_policy EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	if [[ -e $policy || -L $policy ]]; then
		aside=$policy.xgw-aside
		# Left by a run that was killed: what is aside is the machine's own.
		if [[ -e $aside || -L $aside ]]; then
			"${become[@]}" rm -f "$policy"
		else
			"${become[@]}" mv "$policy" "$aside"
		fi
	fi
	policy_made=1
	printf '#!/bin/sh\nexit 101\n' | "${become[@]}" tee "$policy" >/dev/null
	"${become[@]}" chmod 0755 "$policy"
}

# disable keeps a service that this script brought in from starting at the next boot.
disable() {
	case $1 in
	nginx-light) set -- nginx ;;
	prometheus) set -- prometheus prometheus-node-exporter ;;
	haproxy | rsyslog | redis-server) ;;
	*) return 0 ;;
	esac
	command -v systemctl >/dev/null || return 0
	local unit
	for unit in "$@"; do
		if "${become[@]}" systemctl --quiet disable "$unit" >/dev/null 2>&1; then
			say "$unit.service stays off: only its program is wanted here"
		fi
	done
}

install_packages() {
	command -v apt-get >/dev/null || {
		say "this is neither Debian nor Ubuntu: install by hand: $*" >&2
		exit 1
	}
	local -a apt=("${become[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -q -y)
	say "apt-get update, since something is missing"
	"${apt[@]}" update </dev/null >/dev/null
	local package
	local -a there=()
	for package in "$@"; do
		if [[ $(LC_ALL=C apt-cache policy "$package") == *'Candidate: '[!\(]* ]]; then
			there+=("$package")
		else
			say "this distribution has no package $package: what needs it is skipped"
		fi
	done
	set -- "${there[@]}"
	(($#)) || return 0
	forbid_services
	say "apt-get install --no-install-recommends $*"
	"${apt[@]}" install --no-install-recommends "$@" </dev/null >/dev/null
	restore_policy
	for package in "$@"; do disable "$package"; done
}

check_go() {
	local want have
	want=$(awk '$1 == "go" { print $2 }' "$(dirname "$0")/../go.mod")
	if ! command -v go >/dev/null; then
		say "Go is missing: install Go $want or newer (https://go.dev/dl) and put it on PATH" >&2
		exit 1
	fi
	have=$(GOTOOLCHAIN=local go env GOVERSION)
	have=${have#go}
	if [[ $(printf '%s\n%s\n' "$want" "${have%%[-+ ]*}" | sort -V | head -n 1) != "$want" ]]; then
		say "Go $have is older than $want, which go.mod asks for; the go command will fetch it, or install it from https://go.dev/dl"
	fi
}

main() {
	local tasks=" ${*:-test} " task what package why
	for task in ${*:-test}; do
		case $task in
		build | test | generate | vm | bench | all) ;;
		*)
			echo "usage: deploy/setup.sh [build|test|generate|vm|bench|all]..." >&2
			exit 2
			;;
		esac
	done

	local -a missing=()
	while read -r task what package why; do
		[[ $tasks == *" $task "* || $tasks == *" all "* ]] || continue
		present "$what" && continue
		say "missing: $what, from package $package: $why"
		[[ " ${missing[*]-} " == *" $package "* ]] || missing+=("$package")
	done < <(needs)
	check_go

	if ((${#missing[@]} == 0)); then
		say "all is there for:$tasks"
		return
	fi
	become=()
	if ((EUID != 0)); then
		if sudo -n true 2>/dev/null; then
			become=(sudo -n)
		elif [[ -t 0 ]] && command -v sudo >/dev/null; then
			become=(sudo)
		else
			say "not root: going on without: ${missing[*]}. To install them: sudo $0$tasks"
			return
		fi
	fi
	install_packages "${missing[@]}"
	say "done"
}

become=()
main "$@"
exit
