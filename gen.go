// SPDX-License-Identifier: Apache-2.0

// Package xgw holds the generate lines of the BPF objects and of gRPC. Their output is
// committed, so that a build needs Go alone; `make check-generate` compares.
// The compiler is told where asm/types.h lies by BPF2GO_CFLAGS: `make generate`.
package xgw

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type count -type queue_counts -type steer_counts -type table_events -type over_counts -type limit_slot -type tables -type limit -type budget -type prefix_head -type verdict -type pinhole -type port_row -type prefix_bucket -type control_state -type heartbeat_state -type verdict_row -type lane_row -type verdict_step -type pinhole_list -type drop_sample -type explanation -type tried_source -type feature -type guard_mode -output-dir pkg/bpf -go-package bpf Gateway bpf/gateway.c -- -O2 -g -mcpu=v2 -Wall -Werror
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type moment -output-dir pkg/datapath/driven -go-package driven Driven bpf/test/driven.c -- -O2 -g -mcpu=v2 -Wall -Werror
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type flow -type progress -output-dir bench/packet/rotate -go-package rotate Rotate bpf/test/rotate.c -- -O2 -g -mcpu=v2 -Wall -Werror
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-dir bench/synflood/flood -go-package flood Flood bpf/test/flood.c -- -O2 -g -mcpu=v2 -Wall -Werror
//go:generate go run ./pkg/telemetry/telemetrypb/generate pkg/telemetry/telemetrypb/telemetry.proto
