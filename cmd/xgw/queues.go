// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/gateway"
	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/mend"
	"github.com/xgw-project/xgw/pkg/zone"
)

// queueReport is what `xgw queues --json` prints.
type queueReport struct {
	*mend.Queues
	Workers []int `json:"worker_cores"` // by worker; -1: not pinned
	Running bool  `json:"running"`      // else they are the cores that workers would have
	// Steering is where connections were placed, of each listener.
	Steering []admin.Steered `json:"steering,omitempty"`
	Drift    []mend.Change   `json:"drift,omitempty"` // that --spread made and somebody changed since
	Balancer string          `json:"irqbalance,omitempty"`
}

func queuesCommand(e *env) *cobra.Command {
	var spread, undo bool
	cmd := &cobra.Command{
		Use:   "queues INTERFACE",
		Short: "Show which core and worker each queue feeds, and give each worker its own",
		Long: `Shows queue, interrupts, the cores that serve them, the worker there, and what share of the
connections was taken by the worker of the CPU that received them: the metric
xgw_steered_connections_local_ratio has it, too.

--spread gives the queues to the workers' cores in turn: it pins their interrupts, has each
core send on a queue of its own (XPS), spreads flows over all queues alike (RSS), and tells a
running irqbalance to leave the interrupts alone. Where a device has no interrupts, as a
veth, RPS hands its packets over. Do it again where something has changed it since. --undo puts
back what was before. Both end with a reboot.`,
		Example: `  xgw queues eth0
  sudo xgw queues eth0 --spread
  sudo xgw queues eth0 --undo`,
		Args: exactly("INTERFACE"),
		RunE: func(_ *cobra.Command, args []string) error {
			if spread && undo {
				return usageError{errors.New("want --spread or --undo, not both")}
			}
			name, by := args[0], mend.ByQueues(args[0])
			if err := host.CheckSysfs("/", name); err != nil {
				return err
			}
			r, err := readQueues(e, name)
			switch {
			case err != nil:
				return err
			case undo:
				return errors.Join(undoChanges(e, by), r.ban(e, nil))
			case !spread:
				return r.print(e)
			}
			cores := slices.DeleteFunc(slices.Clone(r.Workers), func(c int) bool { return c < 0 })
			if len(cores) == 0 {
				return errors.New("spread queues: the workers are not pinned to cores: set pin: true in gateway.yaml, and restart")
			}
			_, err = change(e, by, r.Spread(cores), true, "xgw queues "+name+" --undo")
			return errors.Join(err, r.ban(e, r.IRQs()))
		},
	}
	cmd.Flags().BoolVar(&spread, "spread", false, "give each worker's core its queues")
	cmd.Flags().BoolVar(&undo, "undo", false, "put back what --spread changed")
	jsonFlag(cmd, e)
	return cmd
}

func readQueues(e *env, name string) (*queueReport, error) {
	m := mend.Here(e.instance)
	q, err := m.ReadQueues(name, host.Interrupts("/", name))
	if err != nil {
		return nil, err
	}
	r := &queueReport{Queues: q}
	if z, err := zone.Open(gateway.ZonePath(e.instance)); err == nil {
		err := z.Guard(func() {
			for i := range z.Workers() {
				r.Workers = append(r.Workers, int(z.Worker(z.Shift()+i).LoadGauge(zone.GaugeCore))-1)
			}
		})
		if err := errors.Join(err, z.Close()); err != nil {
			return nil, err
		}
		r.Running = true
	} else if r.Workers, err = host.AllowedCores(); err != nil {
		return nil, err
	}
	if s, err := admin.NewClient(admin.SocketPath(e.instance)).Status(); err == nil {
		r.Steering = s.Steering
	}
	if _, r.Drift, err = m.Drift(name); err != nil && !errors.Is(err, os.ErrPermission) {
		return nil, err
	}
	_, r.Balancer = mend.Balancer(os.DirFS("/"))
	return r, nil
}

// ban has a running irqbalance leave these interrupts alone, and those that its command line
// names; where it cannot be told, how to is said.
func (r *queueReport) ban(e *env, irqs []int) error {
	pid, line := mend.Balancer(os.DirFS("/"))
	if pid == "" || len(r.IRQs()) == 0 {
		return nil
	}
	all := append(mend.Banned(line), irqs...)
	set, _, err := mend.Here(e.instance).Drift("") // of other interfaces: it keeps one list
	if err != nil {
		return err
	}
	for _, c := range set {
		var n int
		if _, err := fmt.Sscanf(c.Object, "/proc/irq/%d/smp_affinity_list", &n); err == nil {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	if err := mend.Ban(mend.BalancerSocket("/", pid), slices.Compact(all)); err != nil {
		if len(irqs) == 0 {
			return nil // nobody was told anything
		}
		return fmt.Errorf("%w: it would move the interrupts again: add to OPTIONS in /etc/default/irqbalance or /etc/sysconfig/irqbalance: %s", err, banOptions(irqs))
	}
	if len(irqs) > 0 {
		fmt.Fprintf(e.err, "irqbalance leaves them alone until it is started anew; for good, in its OPTIONS: %s\n", banOptions(irqs))
	}
	return nil
}

func banOptions(irqs []int) string {
	var words []string
	for _, n := range irqs {
		words = append(words, fmt.Sprintf("--banirq=%d", n))
	}
	return strings.Join(words, " ")
}

func (r *queueReport) print(e *env) error {
	if e.json {
		return json.NewEncoder(e.out).Encode(r)
	}
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "QUEUE\tIRQ\tMAY GO TO\tGOES TO\tWORKER\tRPS\tXPS")
	for _, q := range r.Queues.Queues {
		served := q.Served
		if len(served) == 0 {
			served = q.Cores
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", q.Number, list(q.IRQs), list(q.Cores), list(q.Served), list(r.workersOn(served)), dash(q.RPS), dash(q.XPS))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !r.Running {
		fmt.Fprintf(e.out, "no gateway runs: workers would be on cores %s\n", list(r.Workers))
	}
	for _, s := range r.Steering {
		if all := s.Local + s.Fallback + s.Refused; all > 0 {
			fmt.Fprintf(e.out, "%s: %.1f %% of %d connections went to the worker of the CPU that received them\n", s.Listener, 100*float64(s.Local)/float64(all), all)
		}
	}
	if len(r.Drift) > 0 {
		fmt.Fprintf(e.out, "%d settings of --spread were changed by somebody since: `xgw queues %s --spread` again\n", len(r.Drift), r.Interface)
	}
	if r.Balancer != "" {
		fmt.Fprintf(e.out, "irqbalance runs, and leaves alone by its command line: %s\n", list(mend.Banned(r.Balancer)))
	}
	return nil
}

// workersOn are the workers pinned to any of the cores.
func (r *queueReport) workersOn(cores []int) (all []int) {
	for worker, core := range r.Workers {
		if slices.Contains(cores, core) {
			all = append(all, worker)
		}
	}
	return all
}

func list(all []int) string {
	var words []string
	for _, n := range all {
		words = append(words, strconv.Itoa(n))
	}
	return dash(strings.Join(words, ","))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
