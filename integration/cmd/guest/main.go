// SPDX-License-Identifier: Apache-2.0

// Command guest is the only program inside the images of the demo and of the tests: static, no shell, no libc.
//
//	guest hello               one line that says who and where
//	guest tree DIR            every entry below DIR, one line each
//	guest digest DIR          one digest over these lines, with counts
//	guest expect DIR DIGEST   the same, and exit 1 when the digest is another one
//	guest sum FILE...         SHA-256 and name of each file
//	guest cat FILE            its bytes
//	guest write FILE TEXT     writes TEXT to FILE, created when missing
//	guest remove PATH         removes PATH and what is below it
//	guest walk DIR            seconds that a look at every entry below DIR takes, and the number of entries
//	guest read DIR            seconds that reading every file below DIR takes, and the number of bytes
//	guest miss DIR            seconds that looking for a missing name in every directory below DIR takes
//	guest time N PROGRAM ...  seconds that each of N runs of a program takes
//	guest wait                prints "waiting" and then sleeps until it is killed
package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/squash-snapshotter/squash/integration/tree"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		args = []string{"hello"}
	}
	verb, args := args[0], args[1:]
	need := map[string]int{"tree": 1, "digest": 1, "expect": 2, "cat": 1, "write": 2, "remove": 1, "walk": 1, "read": 1, "miss": 1}
	if n, ok := need[verb]; ok && len(args) != n {
		return fmt.Errorf("%s takes %d arguments, got %d", verb, n, len(args))
	}
	switch verb {
	case "hello":
		fmt.Printf("hello from process %d, user %d\n", os.Getpid(), os.Getuid())
		return nil
	case "tree":
		list, err := tree.Walk(args[0])
		for _, e := range list {
			fmt.Println(e)
		}
		return err
	case "digest":
		_, err := digest(args[0])
		return err
	case "expect":
		got, err := digest(args[0])
		if err == nil && got != args[1] {
			err = fmt.Errorf("tree %s: got %s, want %s", args[0], got, args[1])
		}
		return err
	case "sum":
		var failed []error
		for _, name := range args {
			failed = append(failed, sum(name))
		}
		return errors.Join(failed...)
	case "cat":
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(os.Stdout, f)
		return err
	case "write":
		return os.WriteFile(args[0], []byte(args[1]), 0o644)
	case "remove":
		return os.RemoveAll(args[0])
	case "walk", "read", "miss":
		return timeTree(verb, args[0])
	case "time":
		return timeProgram(args)
	case "wait":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
		fmt.Println("waiting")
		<-stop
		return nil
	}
	return fmt.Errorf("unknown verb %q", verb)
}

func digest(dir string) (string, error) {
	list, err := tree.Walk(dir)
	if err != nil {
		return "", err
	}
	var files int
	var bytes int64
	for _, e := range list {
		if e.Type == '-' {
			files++
			bytes += e.Size
		}
	}
	d := tree.Digest(list)
	fmt.Printf("%s entries=%d files=%d bytes=%d\n", d, len(list), files, bytes)
	return d, nil
}

func sum(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	fmt.Printf("%x  %s\n", h.Sum(nil), name)
	return nil
}
