// SPDX-License-Identifier: Apache-2.0

//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Environment of a process that is to be killed.
const (
	// TraceEnv is the path of a file that gets the label of every hit, a line
	// each, before the process goes on or dies.
	TraceEnv = "SQUASH_FAILPOINT_TRACE"
	// KillEnv is the number of the hit that kills, from 0 on, or the beginning
	// of the label whose first hit does.
	KillEnv = "SQUASH_FAILPOINT_KILL"
)

// armed is nil until Arm: hits before that do not count.
var armed atomic.Pointer[points]

type points struct {
	mu    sync.Mutex
	hits  int
	at    int    // the hit that kills, -1: none
	label string // the label that kills, if at is -1
	trace *os.File
}

// Arm has hits count from now on, as the environment says.
func Arm() error {
	p := &points{at: -1}
	if kill := os.Getenv(KillEnv); kill != "" {
		if n, err := strconv.Atoi(kill); err == nil {
			p.at = n
		} else {
			p.label = kill
		}
	}
	var err error
	if p.trace, err = os.OpenFile(os.Getenv(TraceEnv), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return fmt.Errorf("failpoint: trace: %w", err)
	}
	if !armed.CompareAndSwap(nil, p) {
		return fmt.Errorf("failpoint: armed twice")
	}
	return nil
}

// Hit is called right after an effect, whose name it gets. Effects that happen
// side by side pass one after the other, and none passes a hit that kills.
func Hit(name string) {
	p := armed.Load()
	if p == nil {
		return
	}
	label := name + callers()
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := fmt.Fprintln(p.trace, label); err != nil {
		panic(err) // the test would not know where the process was killed
	}
	if p.hits == p.at || p.label != "" && strings.HasPrefix(label, p.label) {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	p.hits++
}

// callers names the functions of the project that led here: one name stands
// for an effect that several things use.
func callers() string {
	pcs := make([]uintptr, 24)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	var names []string
	for {
		f, more := frames.Next()
		if !strings.HasSuffix(f.File, "_test.go") && strings.Contains(f.Function, "/squash/") {
			name := f.Function[strings.LastIndexByte(f.Function, '/')+1:]
			for _, cut := range []string{"(*", ")"} {
				name = strings.ReplaceAll(name, cut, "")
			}
			if i := strings.Index(name, ".func"); i >= 0 {
				name = name[:i]
			}
			if name = name[strings.LastIndexByte(name, '.')+1:]; !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		if !more || len(names) == 6 {
			break
		}
	}
	if len(names) == 0 {
		return ""
	}
	return " in " + strings.Join(names, " < ")
}
