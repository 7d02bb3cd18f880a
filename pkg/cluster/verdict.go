// SPDX-License-Identifier: Apache-2.0

package cluster

// verdictFates are what becomes of messages of verdicts.
var verdictFates []string
