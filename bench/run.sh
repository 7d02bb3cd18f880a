#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every bench, from the root of the module, as root. Arguments go to bench/http.
set -eu
cd "$(dirname "$0")/.."
go run ./bench/http "$@"
