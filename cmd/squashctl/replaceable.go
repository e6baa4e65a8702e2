// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// replaceable makes sure that a file which is written aside and renamed takes the place of a file or of nothing: as root,
// it would take that of /dev/stdout, too.
func replaceable(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is there and is no file: name another one", path)
	}
	return nil
}
