// SPDX-License-Identifier: Apache-2.0

package top

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	"github.com/xgw-project/xgw/pkg/ledger"
)

// Options of a screen.
type Options struct {
	Interval time.Duration // between frames
	Pane     string        // that is shown first; "" for the first one
	In       io.Reader
	Out      io.Writer
	// Verdict asks the gateway to hold something against a source for a while, and says
	// what came of it; nil where that cannot be done.
	Verdict func(source string) error
}

// Run shows frames of the source until the user ends it, or the context does.
func Run(ctx context.Context, s *Source, o Options) error {
	m := &screen{source: s, options: o, sorted: map[string]order{}, pane: cmp.Or(o.Pane, PaneNames[0])}
	_, err := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(o.In), tea.WithOutput(o.Out)).Run()
	if errors.Is(err, tea.ErrInterrupted) || ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("show screen: %w", err)
	}
	return nil
}

// order is how a pane is sorted; 0 is as it comes.
type order struct {
	column  int // plus 1
	reverse bool
}

// screen is what is on the terminal. All of it belongs to the program's one loop, but
// the source, which the one reading at a time has.
type screen struct {
	source  *Source
	options Options

	frame         *Frame
	pane          string
	sorted        map[string]order
	selected      string // first cell of the row
	filter        string
	typing        bool   // of the filter
	asking        string // the source that a verdict was asked for, until yes or no
	paused, help  bool
	said          string
	width, height int
}

type (
	tick time.Time
	told string
)

func (m *screen) Init() tea.Cmd { return m.read }

// read takes a frame; it runs beside the loop, never twice at once.
func (m *screen) read() tea.Msg { return m.source.Read() }

func (m *screen) wait() tea.Cmd {
	return tea.Tick(m.options.Interval, func(t time.Time) tea.Msg { return tick(t) })
}

func (m *screen) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case *Frame:
		m.frame = msg
		return m, m.wait()
	case tick:
		if m.paused {
			return m, m.wait()
		}
		return m, m.read
	case told:
		m.said = string(msg)
	case tea.KeyPressMsg:
		return m, m.key(msg)
	}
	return m, nil
}

func (m *screen) key(k tea.KeyPressMsg) tea.Cmd {
	if k.String() == "ctrl+c" {
		return tea.Quit
	}
	if m.frame == nil {
		return nil
	}
	m.said = ""
	switch {
	case m.typing:
		m.edit(k)
		return nil
	case m.asking != "":
		return m.answer(k)
	}
	switch k.String() {
	case "q":
		return tea.Quit
	case "esc":
		m.help, m.filter = false, ""
	case "?", "h":
		m.help = !m.help
	case "space", "p":
		m.paused = !m.paused
	case "tab", "right", "l":
		m.turn(1)
	case "shift+tab", "left":
		m.turn(-1)
	case "down", "j":
		m.move(1)
	case "up", "k":
		m.move(-1)
	case "s":
		m.sort()
	case "r":
		o := m.sorted[m.pane]
		o.reverse = !o.reverse
		m.sorted[m.pane] = o
	case "/":
		m.typing = true
	case "v":
		m.ask()
	default:
		n := int(k.Code - '1')
		if k.Code == '0' { // behind 9, as on the keyboard
			n = 9
		}
		if len(k.Text) == 1 && n >= 0 && n < len(m.frame.Panes) {
			m.show(m.frame.Panes[n].Name)
		}
	}
	return nil
}

// edit takes a key of the filter's line.
func (m *screen) edit(k tea.KeyPressMsg) {
	switch k.String() {
	case "enter":
		m.typing = false
	case "esc":
		m.typing, m.filter = false, ""
	case "backspace":
		if n := len(m.filter); n > 0 {
			m.filter = m.filter[:n-1]
		}
	default:
		m.filter += k.Text
	}
}

// ask offers a verdict on the selected source.
func (m *screen) ask() {
	switch source := m.chosenSource(); {
	case source == "":
		m.said = "a verdict is for a source: choose one in the pane sources, or who used a key last in the pane keys"
	case m.options.Verdict == nil:
		m.said = "no gateway answers that could hold a verdict"
	default:
		m.asking = source
	}
}

// chosenSource is what the selected row says of a source; "" for nothing.
func (m *screen) chosenSource() string {
	t := m.table()
	at := m.position(t)
	for c := range t.Columns {
		if at >= 0 && t.Columns[c].Key == "source" {
			return t.Rows[at][c].Text
		}
	}
	return ""
}

func (m *screen) answer(k tea.KeyPressMsg) tea.Cmd {
	source := m.asking
	m.asking = ""
	if k.String() != "y" {
		m.said = "no verdict"
		return nil
	}
	verdict := m.options.Verdict
	return func() tea.Msg {
		if err := verdict(source); err != nil {
			return told(err.Error())
		}
		return told("verdict on " + source)
	}
}

func (m *screen) show(pane string) { m.pane, m.selected = pane, "" }

func (m *screen) turn(by int) {
	n := len(m.frame.Panes)
	for i := range m.frame.Panes {
		if m.frame.Panes[i].Name == m.pane {
			m.show(m.frame.Panes[(i+by+n)%n].Name)
			return
		}
	}
}

// sort goes on to the next column, and at last to the order as it comes.
func (m *screen) sort() {
	o := m.sorted[m.pane]
	o.column = (o.column + 1) % (len(m.frame.Pane(m.pane).Columns) + 1)
	m.sorted[m.pane] = o
}

// table is the pane as it is shown: filtered and sorted, in a copy.
func (m *screen) table() *Table {
	t := *m.frame.Pane(m.pane)
	t.Rows = append([][]Cell(nil), t.Rows...)
	if m.filter != "" {
		t.Filter(m.filter)
	}
	if o := m.sorted[m.pane]; o.column > 0 {
		t.Sort(o.column-1, o.reverse)
	}
	return &t
}

func (m *screen) move(by int) {
	t := m.table()
	if len(t.Rows) == 0 {
		return
	}
	next := 0
	if i := m.position(t); i >= 0 {
		next = min(max(i+by, 0), len(t.Rows)-1)
	}
	m.selected = identity(t, t.Rows[next])
}

// position is the selected row's, -1 for none.
func (m *screen) position(t *Table) int {
	for i, row := range t.Rows {
		if m.selected != "" && identity(t, row) == m.selected {
			return i
		}
	}
	return -1
}

// identity is a row's text up to its first number: what it is about.
func identity(t *Table, row []Cell) string {
	var words []string
	for c := range t.Columns {
		if t.Columns[c].Format != nil {
			break
		}
		words = append(words, row[c].Text)
	}
	return strings.Join(words, " ")
}

var (
	strong  = lipgloss.NewStyle().Bold(true)
	reverse = lipgloss.NewStyle().Reverse(true)
	alarm   = lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Red)
)

const helpText = `  1-0, Tab, arrows  the pane                  Up, Down  a row
  s                 sort by the next column   r         the other way round
  /                 filter rows by a text     Esc       no filter
  Space, p          pause                     v         verdict on the chosen source
  ?                 this help                 q         quit

  Rates are of the last interval. SAMPLES are of dropped frames, one of 64; the pane
  drops has the exact counts. CPU is of one core. Of sources and keys those are told
  that were the busiest lately; v in the pane keys is for the address in LAST FROM.`

func (m *screen) View() tea.View {
	v := tea.NewView("")
	v.AltScreen = true
	v.WindowTitle = "xgw top"
	if m.frame == nil || m.width == 0 {
		return v
	}
	var lines []string
	for i, line := range m.frame.head() {
		style := lipgloss.NewStyle()
		if i == 0 {
			style = strong
		}
		if strings.HasPrefix(line, "! ") || i == 0 && m.frame.Gateway.Supervisor != ledger.Running {
			style = alarm
		}
		lines = append(lines, style.Render(m.cut(line)))
	}
	lines = append(lines, m.tabs(), "")
	if m.help {
		for line := range strings.SplitSeq(helpText, "\n") {
			lines = append(lines, m.cut(line))
		}
	} else {
		lines = append(lines, m.body(m.height-len(lines)-1)...)
	}
	for len(lines) < m.height {
		lines = append(lines, "")
	}
	lines = append(lines[:max(m.height-1, 0)], m.foot())
	v.Content = strings.Join(lines, "\n")
	return v
}

// body is the table in so many lines, scrolled to the selected row.
func (m *screen) body(room int) []string {
	t := m.table()
	if len(t.Rows) == 0 {
		return []string{"  nothing to show: nothing of this was counted yet, or the filter leaves none"}
	}
	lines := t.lines()
	out := []string{strong.Render(m.cut(lines[0]))}
	chosen := m.position(t)
	first := 0
	if rows := room - 1; chosen >= rows {
		first = chosen - rows + 1
	}
	for i := first; i < len(t.Rows) && len(out) < room; i++ {
		line := m.cut(lines[i+1])
		if i == chosen {
			line = reverse.Render(line)
		}
		out = append(out, line)
	}
	return out
}

// tabLetters are of a pane's name where the screen has no room for all of all names.
const tabLetters = 5

// tabs names the panes.
func (m *screen) tabs() string {
	room := 0
	for i := range m.frame.Panes {
		room += len("1  ") + len(m.frame.Panes[i].Name)
	}
	var b strings.Builder
	for i := range m.frame.Panes {
		name := m.frame.Panes[i].Name
		tab := fmt.Sprintf("%d %s", (i+1)%10, name)
		if room > m.width && name != m.pane {
			tab = tab[:min(len(tab), len("1 ")+tabLetters)]
		}
		if name == m.pane {
			tab = reverse.Render(tab)
		}
		b.WriteString(tab + " ")
	}
	return m.cutStyled(b.String())
}

func (m *screen) foot() string {
	switch {
	case m.typing:
		return m.cut("filter: " + m.filter + "_")
	case m.asking != "":
		return alarm.Render(m.cut("drop three of four new connections of " + m.asking + " for ten minutes? y for yes"))
	case m.said != "":
		return m.cut(m.said)
	}
	line := "q quit  ? help"
	if m.paused {
		line += "  PAUSED"
	}
	if o := m.sorted[m.pane]; o.column > 0 {
		line += "  by " + m.frame.Pane(m.pane).Columns[o.column-1].Title
	}
	if m.filter != "" {
		line += "  filter: " + m.filter
	}
	return m.cut(line)
}

// cut ends a line where the screen does.
func (m *screen) cut(line string) string {
	r := []rune(line)
	return string(r[:min(len(r), m.width)])
}

// cutStyled does the same with a line that has colours in it.
func (m *screen) cutStyled(line string) string {
	return lipgloss.NewStyle().MaxWidth(m.width).Render(line)
}
