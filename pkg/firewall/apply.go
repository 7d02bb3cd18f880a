// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Errors of Confirm.
var (
	ErrNothingWaits = errors.New("nothing waits to be confirmed")
	ErrTooLate      = errors.New("too late: what held before holds again")
)

// State is what the kernel has of an instance's table.
type State struct {
	Exists  bool
	Holds   string        // the digest of the rules that are confirmed; "": none, everything passes
	Waits   string        // of those that hold until they are confirmed or their time is over; "": none do
	Left    time.Duration // of that time
	Packets uint64        // dropped since the table was made
}

// Kernel is nftables in the network namespace of the thread that calls. Each change is one
// transaction: the kernel makes all of it or none.
type Kernel struct{ conn *nftables.Conn }

// Open needs CAP_NET_ADMIN.
func Open() (*Kernel, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		// A transaction goes out, and its receipts come in, at once.
		return errors.Join(c.SetWriteBuffer(4<<20), c.SetReadBuffer(4<<20))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", explain(err))
	}
	return &Kernel{conn}, nil
}

// Close ends the conversation; what was changed stays.
func (k *Kernel) Close() error { return k.conn.CloseLasting() }

// explain says what an operator can do about it.
func explain(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: run it as root, or with CAP_NET_ADMIN", err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%w: this kernel has no nftables, or not the parts that are needed: load nf_tables and nf_tables_inet", err)
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w: somebody has changed the table meanwhile, or rules of others lead into it: nothing was changed; try again, or take it away with `xgw firewall undo`", err)
	}
	return err
}

func table(name string) *nftables.Table {
	return &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
}

func waiting(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: unconfirmed, KeyType: nftables.TypeNFProto, HasTimeout: true}
}

// State reads what there is. A table of that name which this package has not made is an error.
func (k *Kernel) State(name string) (s State, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read table inet %s: %w", name, explain(err))
		}
	}()
	t := table(name)
	chains, err := k.conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return s, err
	}
	tables, err := k.conn.ListTablesOfFamily(t.Family)
	if err != nil {
		return s, err
	}
	for _, other := range tables {
		s.Exists = s.Exists || other.Name == name
	}
	if !s.Exists {
		return s, nil
	}
	base := false
	for _, c := range chains {
		switch {
		case c.Table.Name != name:
		case c.Name == inputChain:
			base = true
		case c.Name != outputChain && !strings.HasPrefix(c.Name, rulesPrefix) && !strings.HasPrefix(c.Name, sentPrefix):
			return s, fmt.Errorf("its chain %s is not of this gateway: somebody else has a table of that name; give the gateway another one with --instance", c.Name)
		}
	}
	if !base {
		return s, nil // nothing holds
	}
	if s.Packets, err = k.dropped(t); err != nil {
		return s, err
	}
	return s, k.readBase(t, &s)
}

func (k *Kernel) dropped(t *nftables.Table) (uint64, error) {
	o, err := k.conn.GetObject(&nftables.CounterObj{Table: t, Name: dropped})
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if c, ok := o.(*nftables.CounterObj); ok && err == nil {
		return c.Packets, nil
	}
	return 0, err
}

// readBase finds which rules hold, by where the base chain leads.
func (k *Kernel) readBase(t *nftables.Table, s *State) error {
	rules, err := k.conn.GetRules(t, &nftables.Chain{Name: inputChain, Table: t})
	if err != nil {
		return err
	}
	for _, r := range rules {
		waits := false
		for _, e := range r.Exprs {
			switch e := e.(type) {
			case *expr.Lookup:
				waits = e.SetName == unconfirmed
			case *expr.Verdict:
				digest, ok := strings.CutPrefix(e.Chain, rulesPrefix)
				switch {
				case !ok:
					return errors.New("its chain input is not of this gateway: somebody else has changed it; `nft delete table inet " + t.Name + "` takes it away")
				case waits:
					s.Waits = digest
				default:
					s.Holds = digest
				}
			}
		}
	}
	if s.Waits == "" {
		return nil
	}
	elements, err := k.conn.GetSetElements(waiting(t))
	for _, e := range elements {
		s.Left = max(s.Left, e.Expires)
	}
	return err
}

var bases = []struct {
	name   string
	hook   *nftables.ChainHook
	prefix string
}{
	{inputChain, nftables.ChainHookInput, rulesPrefix},
	{outputChain, nftables.ChainHookOutput, sentPrefix},
}

// Apply puts the rules in force. With a time to confirm they hold until Confirm, or until that
// time is over, which the kernel sees to: then what held before holds again. It tells whether
// anything waits; rules that hold already are made again as they should be, and need no confirmation.
func (k *Kernel) Apply(f *Firewall, confirm time.Duration) (waits bool, err error) {
	s, err := k.State(f.Table)
	if err != nil {
		return false, err
	}
	t := table(f.Table)
	k.conn.AddTable(t)
	k.conn.AddObj(&nftables.CounterObj{Table: t, Name: dropped})
	for _, v := range []*flows{sent4, sent6} {
		set := &nftables.Set{Table: t, Name: v.name, KeyType: v.key, Dynamic: true, HasTimeout: true, Timeout: flowTime, Size: mostFlows}
		if err := k.conn.AddSet(set, nil); err != nil {
			return false, fmt.Errorf("apply table inet %s: %w", f.Table, err)
		}
	}
	k.addBases(t)
	for _, c := range []struct {
		name  string
		rules []rule
	}{{rulesPrefix, f.rules()}, {sentPrefix, f.sent()}} {
		if err := k.addRules(t, c.name+f.digest, c.rules); err != nil {
			return false, fmt.Errorf("apply table inet %s: %w", f.Table, err)
		}
	}
	waits = confirm > 0 && s.Holds != f.digest
	if waits {
		err = k.lead(t, s, s.Holds, f.digest, confirm)
	} else {
		err = k.lead(t, s, f.digest, "", 0)
	}
	if err != nil {
		return false, fmt.Errorf("apply table inet %s: %w", f.Table, explain(err))
	}
	return waits, nil
}

func (k *Kernel) addBases(t *nftables.Table) {
	pass := nftables.ChainPolicyAccept
	for _, b := range bases {
		k.conn.AddChain(&nftables.Chain{
			Name: b.name, Table: t, Hooknum: b.hook, Priority: nftables.ChainPriorityFilter, Type: nftables.ChainTypeFilter, Policy: &pass,
		})
	}
}

// addRules makes the chain what it should be, whatever is in it.
func (k *Kernel) addRules(t *nftables.Table, name string, rules []rule) error {
	c := k.conn.AddChain(&nftables.Chain{Name: name, Table: t})
	k.conn.FlushChain(c)
	for _, r := range rules {
		var exprs []expr.Any
		for _, m := range append(append([]match{}, r.matches...), r.then) {
			exprs = append(exprs, m.exprs...)
			if m.in == nil {
				continue
			}
			set := &nftables.Set{Table: t, Anonymous: true, Constant: true, Interval: m.interval, KeyType: m.key}
			if err := k.conn.AddSet(set, m.in); err != nil {
				return err
			}
			exprs = append(exprs, &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID})
		}
		k.conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: exprs})
	}
	return nil
}

// lead has the base chains lead to the rules that hold, and before them to those that wait, for
// as long as there is something in the set; and takes away all others. It ends the transaction.
func (k *Kernel) lead(t *nftables.Table, was State, holds, waits string, confirm time.Duration) error {
	for _, b := range bases {
		if was.Exists {
			k.conn.FlushChain(&nftables.Chain{Name: b.name, Table: t})
		}
	}
	if was.Waits != "" {
		k.conn.DelSet(waiting(t))
	}
	if waits != "" {
		set := waiting(t)
		if err := k.conn.AddSet(set, []nftables.SetElement{
			{Key: []byte{unix.NFPROTO_IPV4}, Timeout: confirm}, {Key: []byte{unix.NFPROTO_IPV6}, Timeout: confirm},
		}); err != nil {
			return err
		}
	}
	for _, b := range bases {
		c := &nftables.Chain{Name: b.name, Table: t}
		to := func(digest string) expr.Any {
			return &expr.Verdict{Kind: expr.VerdictGoto, Chain: b.prefix + digest}
		}
		if waits != "" {
			k.conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: unconfirmed}, to(waits),
			}})
		}
		if holds != "" {
			k.conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: []expr.Any{to(holds)}})
		}
	}
	for i, old := range []string{was.Holds, was.Waits} {
		if old == "" || old == holds || old == waits || i == 1 && old == was.Holds {
			continue
		}
		for _, b := range bases {
			k.conn.DelChain(&nftables.Chain{Name: b.prefix + old, Table: t})
		}
	}
	return k.conn.Flush()
}

// Confirm keeps what Apply has put in force for a time.
func (k *Kernel) Confirm(name string) error {
	s, err := k.State(name)
	switch {
	case err != nil:
		return err
	case s.Waits == "":
		return fmt.Errorf("confirm table inet %s: %w", name, ErrNothingWaits)
	case s.Left <= 0:
		return fmt.Errorf("confirm table inet %s: %w; `xgw firewall apply` tries again", name, ErrTooLate)
	}
	if err := k.lead(table(name), s, s.Waits, "", 0); err != nil {
		return fmt.Errorf("confirm table inet %s: %w", name, explain(err))
	}
	return nil
}

// Undo takes the table away, and tells whether there was one. Everything passes then.
func (k *Kernel) Undo(name string) (was bool, err error) {
	s, err := k.State(name)
	if err != nil || !s.Exists {
		return false, err
	}
	k.conn.DelTable(table(name))
	if err := k.conn.Flush(); err != nil {
		return false, fmt.Errorf("take away table inet %s: %w", name, explain(err))
	}
	return true, nil
}
