// SPDX-License-Identifier: Apache-2.0

// Package page opens the page of squashctl report in a browser, and reads back what a person would see there.
package page

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/internal/reportpage"
)

var screenshots = flag.String("screenshots", "", "write screenshots of the page to files in `DIR`")

// browser is started by the first test that wants one, and shared.
var browser = struct {
	once sync.Once
	ctx  context.Context
	end  func()
	err  error
}{end: func() {}}

func TestMain(m *testing.M) {
	code := m.Run()
	browser.end()
	os.Exit(code)
}

// programs are names that a Chromium has.
var programs = []string{"chromium", "chromium-browser", "google-chrome"}

var errNoBrowser = errors.New("there is no Chromium (Debian: apt-get install chromium)")

// startBrowser starts it without a home directory of anybody, and without services that need the network.
func startBrowser() (context.Context, func(), error) {
	var program string
	for _, name := range programs {
		if found, err := exec.LookPath(name); err == nil {
			program = found
			break
		}
	}
	if program == "" {
		return nil, func() {}, errNoBrowser
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.WSURLReadTimeout(time.Minute), chromedp.Flag("force-color-profile", "srgb"))
	allocator, endAllocator := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, endBrowser := chromedp.NewContext(allocator)
	end := func() { endBrowser(); endAllocator() }
	if err := chromedp.Do(ctx); err != nil {
		end()
		return nil, func() {}, fmt.Errorf("start %s: %w", program, err)
	}
	return ctx, end, nil
}

// tab is a page in the browser, and what it did that it should not.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	messages []string // in the console, of the policy, dialogs
	requests []string
}

// open writes the page of a report to a file and opens that, after what is to be set up before. When the test ends, the
// page must have asked for nothing but itself, and have no message in its console.
func open(t *testing.T, r *adminapi.ReportResponse, before ...step) *tab {
	t.Helper()
	browser.once.Do(func() { browser.ctx, browser.end, browser.err = startBrowser() })
	if errors.Is(browser.err, errNoBrowser) {
		t.Skip(browser.err)
	}
	if browser.err != nil {
		t.Fatal(browser.err)
	}
	file := filepath.Join(t.TempDir(), "report.html")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(reportpage.Write(f, r), f.Close()); err != nil {
		t.Fatal(err)
	}
	ctx, closeTab := chromedp.NewContext(browser.ctx)
	t.Cleanup(closeTab)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("open a tab: %v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	t.Cleanup(cancel)
	p := &tab{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, p.listen); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.messages) > 0 {
			t.Errorf("messages:\n%s", strings.Join(p.messages, "\n"))
		}
		if len(p.requests) != 1 || p.requests[0] != "file://"+file {
			t.Errorf("requests: %q, want that of the page alone", p.requests)
		}
	})
	p.run(call(network.Enable, network.EnableParams{}), call(cdplog.Enable, cdp.Empty{}), call(runtime.Enable, cdp.Empty{}), call(cdppage.Enable, cdppage.EnableParams{}))
	p.run(append(before, chromedp.Navigate("file://"+file))...)
	return p
}

func (p *tab) listen(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		p.requests = append(p.requests, e.Request.URL)
	case *runtime.EventConsoleAPICalled:
		p.messages = append(p.messages, fmt.Sprintf("console.%s", e.Type))
	case *runtime.EventExceptionThrown:
		p.messages = append(p.messages, e.ExceptionDetails.Text)
	case *cdplog.EventEntryAdded:
		p.messages = append(p.messages, e.Entry.Text)
	case *cdppage.EventJavascriptDialogOpening:
		p.messages = append(p.messages, "dialog: "+e.Message)
	}
}

// step is something that the browser does.
type step = chromedp.Action[chromedp.Void]

// call is the step of a command of the browser's protocol.
func call[P, R any](command cdp.Command[P, R], params P) step {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, command, params)
		return err
	})
}

func (p *tab) run(steps ...step) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, steps...); err != nil {
		p.t.Fatal(err)
	}
}

// value is what an expression of the page's language is worth.
func value[T any](p *tab, expression string) T {
	p.t.Helper()
	v, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// text is what a person reads in an element.
func (p *tab) text(selector string) string {
	p.t.Helper()
	return value[string](p, fmt.Sprintf("document.querySelector(%q).innerText", selector))
}

// rows reads the cells of a table's body.
func (p *tab) rows(table string) [][]string {
	p.t.Helper()
	return value[[][]string](p, fmt.Sprintf(
		"[...document.querySelectorAll(%q)].map(row => [...row.cells].map(c => c.innerText.trim()))", table+" tbody tr"))
}

// This proves the tests here: what the page must not do is noticed.
func TestWhatThePageMustNotDoIsNoticed(t *testing.T) {
	p := open(t, sample())
	for _, try := range []string{
		`fetch("http://127.0.0.1:9/").catch(() => {})`,
		`document.body.append(Object.assign(new Image(), {src: "http://127.0.0.1:9/x.png"}))`,
		`console.error("seen")`,
		`setTimeout(() => { document.querySelector("h1").setAttribute("onclick", "alert(1)") })`,
		`document.body.setAttribute("style", "color: red")`,
		`setTimeout(() => { document.body.innerHTML = "<p>" })`,
	} {
		p.run(chromedp.Evaluate[chromedp.Void](try))
		if err := p.await(func() bool { return len(p.messages) > 0 }); err != nil {
			t.Errorf("%s: %v", try, err)
		}
		p.mu.Lock()
		t.Logf("%s: %s", try, strings.Join(p.messages, "; "))
		p.messages, p.requests = nil, p.requests[:1]
		p.mu.Unlock()
	}
}

// await waits for what events bring about.
func (p *tab) await(done func() bool) error {
	for {
		p.mu.Lock()
		ok := done()
		p.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-p.ctx.Done():
			return fmt.Errorf("not noticed: %w", p.ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
