// SPDX-License-Identifier: Apache-2.0

package host

import "fmt"

// version is a kernel's, major and minor; zero for unknown or never.
type version [2]int

func parseVersion(release string) version {
	var v version
	if n, _ := fmt.Sscanf(release, "%d.%d", &v[0], &v[1]); n != 2 {
		return version{}
	}
	return v
}

func (v version) before(w version) bool { return v[0] < w[0] || v[0] == w[0] && v[1] < w[1] }

func (v version) String() string { return fmt.Sprintf("%d.%d", v[0], v[1]) }

// merging is what a driver does about hardware that merges packets (LRO, hardware
// GRO), when a native program comes.
type merging int

const (
	mergingUnknown  merging = iota
	mergingRefuses          // the attach fails
	mergingTurnsOff         // the driver turns it off by itself
	mergingNone             // it has none, or minds none
)

// Flaps: what the first native attach does to the link.
const (
	flapNone    = "none, the link stays up"
	flapQueues  = "short, the driver stops its queues and makes them anew; packets of that moment are lost"
	flapPort    = "seconds, the driver resets the port and the link comes up again; 1 to 10 s have been reported"
	flapBeneath = "none by itself; an accelerated function beneath it is reset for seconds"
	flapUnknown = "not known for this driver, expect the link to go down for some seconds"
)

// driver is what a driver in the kernel's own tree does with native XDP. Its facts
// are from drivers/net of Linux 6.1 and 7.2; kernels by the commits that ebpf-docs
// names. Drivers from elsewhere may differ, and the kernel's own word, XDPFeatures,
// goes before this table.
type driver struct {
	native  version // the first kernel; zero: none has it
	frags   version // likewise, for packets in several buffers
	mtu     int     // the most for packets in one buffer, with pages of 4 KiB; 0: not known, or no limit
	merging merging
	flap    string
}

// drivers with native XDP.
var drivers = map[string]driver{
	"atlantic":      {native: version{5, 19}, frags: version{5, 19}, mtu: 2048, merging: mergingTurnsOff},
	"bnxt_en":       {native: version{4, 11}, frags: version{5, 19}, mtu: 3502, merging: mergingTurnsOff, flap: flapQueues},
	"ena":           {native: version{5, 6}, mtu: 3498, merging: mergingNone, flap: flapPort},
	"fsl_dpa":       {native: version{5, 11}, mtu: 3706},
	"fsl_dpaa2_eth": {native: version{5, 0}},
	"fsl_enetc":     {native: version{5, 13}},
	"fec":           {native: version{6, 2}},
	"funeth":        {native: version{5, 18}, mtu: 3566},
	"gve":           {native: version{6, 4}, mtu: 2032, merging: mergingRefuses, flap: flapQueues},
	"hv_netvsc":     {native: version{5, 6}, mtu: 3506, merging: mergingRefuses, flap: flapBeneath},
	"i40e":          {native: version{4, 13}, frags: version{6, 4}, mtu: 3046, merging: mergingNone, flap: flapPort},
	"ice":           {native: version{5, 5}, frags: version{6, 3}, mtu: 3046, merging: mergingNone, flap: flapPort},
	"idpf":          {native: version{6, 18}, frags: version{6, 18}},
	"igb":           {native: version{5, 10}, mtu: 3046, merging: mergingNone, flap: flapPort},
	"igc":           {native: version{5, 13}, mtu: 1500, merging: mergingNone, flap: flapPort},
	"ionic":         {native: version{6, 9}, frags: version{6, 9}, mtu: 3502},
	"ixgbe":         {native: version{4, 12}, mtu: 3050, merging: mergingRefuses, flap: flapPort},
	"ixgbevf":       {native: version{4, 17}, mtu: 3050, merging: mergingNone, flap: flapPort},
	"lan966x":       {native: version{6, 2}},
	"mana":          {native: version{5, 17}, mtu: 3506, merging: mergingNone, flap: flapQueues},
	"mlx4_en":       {native: version{4, 8}, mtu: 3498, flap: flapPort},
	"mlx5_core":     {native: version{4, 9}, frags: version{6, 4}, mtu: 3498, merging: mergingRefuses, flap: flapPort},
	"mtk_soc_eth":   {native: version{6, 0}, mtu: 3520},
	"mvneta":        {native: version{5, 5}, frags: version{5, 18}, mtu: 3520},
	"mvpp2":         {native: version{5, 9}, mtu: 3552},
	"netsec":        {native: version{5, 3}, mtu: 1500},
	"nfp":           {native: version{4, 10}, flap: flapQueues},
	"nicvf":         {native: version{4, 12}, mtu: 1508},
	"qede":          {native: version{4, 10}},
	"rvu-nicpf":     {native: version{5, 16}, mtu: 1508},
	"rvu-nicvf":     {native: version{5, 16}, mtu: 1508},
	"sfc":           {native: version{5, 5}, mtu: 3522},
	"st_gmac":       {native: version{5, 13}, mtu: 1500, merging: mergingNone, flap: flapQueues},
	"st_xgmac":      {native: version{5, 13}, mtu: 1500, merging: mergingNone, flap: flapQueues},
	"tsnep":         {native: version{6, 3}},
	"tun":           {native: version{4, 14}, merging: mergingNone, flap: flapNone}, // longer packets run it as generic does
	"veth":          {native: version{4, 19}, frags: version{5, 18}, mtu: 3506, merging: mergingNone, flap: flapNone},
	"virtio_net":    {native: version{4, 10}, frags: version{6, 3}, mtu: 3506, merging: mergingNone, flap: flapNone}, // merging: see virtioFindings
	"vif":           {native: version{5, 9}, mtu: 3840},                                                              // xen-netfront
	"vmxnet3":       {native: version{6, 6}, mtu: 3494, merging: mergingTurnsOff, flap: flapQueues},
}

// Drivers and kinds of devices that have no native XDP, up to Linux 7.2. What is in
// neither table is not known.
var withoutNative = map[string]bool{
	"e1000": true, "e1000e": true, "r8169": true, "r8152": true, "tg3": true, "bnx2x": true, "bnx2": true, "be2net": true,
	"iavf": true, "fm10k": true, "enic": true, "cxgb4": true, "hns3": true, "alx": true, "atl1c": true, "bcmgenet": true,
	"ath10k_pci": true, "ath11k_pci": true, "iwlwifi": true, "cdc_ether": true, "cdc_ncm": true, "ax88179_178a": true,
}

var kindsWithoutNative = map[string]bool{
	"loopback": true, "bridge": true, "vlan": true, "macvlan": true, "macvtap": true, "ipvlan": true, "macsec": true,
	"dummy": true, "ifb": true, "vxlan": true, "geneve": true, "team": true, "openvswitch": true,
	"wireguard": true, "tun": true, "gre": true, "ipip": true, "sit": true, "ip6tnl": true, "xfrm": true, "vrf": true,
}
