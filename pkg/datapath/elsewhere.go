// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// otherPlace is where pinned programs run that are not on the interface of that name.
type otherPlace struct {
	is   int // nowhere, otherName or otherNamespace
	link netlink.Link
}

// Values of otherPlace.is.
const (
	nowhere = iota
	otherName
	otherNamespace
)

// prepareGone is prepare for an interface that is gone, so that its pins can be removed.
func prepareGone(o Options) (*Datapath, error) {
	if o.BPFFS == "" {
		o.BPFFS = defaultBPFFS
	}
	return &Datapath{options: o, link: &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: o.Interface}}, dir: pinDir(&o)}, nil
}

// findOther looks where the pinned programs run: on an interface that got another name,
// or, where links tell, in another network namespace.
func (d *Datapath) findOther() otherPlace {
	all, err := netlink.LinkList()
	if err != nil {
		return otherPlace{}
	}
	for _, l := range all {
		there := *d
		there.link = l
		if l.Attrs().Name != d.options.Interface && there.Status().Attached {
			return otherPlace{otherName, l}
		}
	}
	for _, pin := range []string{pinXDPLink, tcIngress.pinName()} {
		l, err := openPin(d, pin, link.LoadPinnedLink)
		if err != nil {
			continue
		}
		info, err := l.Info()
		l.Close()
		if err != nil {
			continue
		}
		// A link whose device is gone has index 0.
		if x := info.XDP(); x != nil && x.Ifindex != 0 {
			return otherPlace{is: otherNamespace}
		}
		if x := info.TCX(); x != nil && x.Ifindex != 0 {
			return otherPlace{is: otherNamespace}
		}
	}
	return otherPlace{}
}

// elsewhere is ErrElsewhere with what to do.
func (d *Datapath) elsewhere(where otherPlace) error {
	if where.is == otherName {
		return fmt.Errorf("%s has pins whose programs run on %s: %w: `%s` takes them off there",
			d.dir, where.link.Attrs().Name, ErrElsewhere, d.options.Command("detach"))
	}
	return fmt.Errorf("%s has pins of a %s in another network namespace: %w: go there for that one, or give this one an --instance of its own",
		d.dir, d.options.Interface, ErrElsewhere)
}
