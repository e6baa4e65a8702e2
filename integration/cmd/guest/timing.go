// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/squash-snapshotter/squash/integration/tree"
)

// timeTree does one thing to all entries below dir, and prints seconds and what it counted.
func timeTree(verb, dir string) error {
	var count int64
	buffer := make([]byte, 1<<20)
	start := time.Now()
	err := tree.Each(dir, func(path, _ string, d fs.DirEntry) error {
		switch {
		case verb == "walk":
			count++
			_, err := d.Info()
			return err
		case verb == "miss" && d.IsDir():
			count++
			if _, err := os.Lstat(filepath.Join(path, "no-such-name")); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s: %w", path, err)
			}
		case verb == "read" && d.Type().IsRegular():
			n, err := readThrough(path, buffer)
			count += n
			return err
		}
		return nil
	})
	fmt.Printf("%.6f %d\n", time.Since(start).Seconds(), count)
	return err
}

func readThrough(path string, buffer []byte) (count int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for {
		n, err := f.Read(buffer)
		count += int64(n)
		if err == io.EOF {
			return count, nil
		}
		if err != nil {
			return count, fmt.Errorf("read %s: %w", path, err)
		}
	}
}

// timeProgram runs args[1:] args[0] times and prints the seconds of each run on a line.
func timeProgram(args []string) error {
	if len(args) < 2 {
		return errors.New("time takes a number and a program")
	}
	runs, err := strconv.Atoi(args[0])
	if err != nil {
		return fmt.Errorf("number of runs: %w", err)
	}
	for range runs {
		cmd := exec.Command(args[1], args[2:]...)
		start := time.Now()
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", args[1], err, out)
		}
		fmt.Printf("%.6f\n", time.Since(start).Seconds())
	}
	return nil
}
