// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

// The names under which the kernel keeps POSIX ACLs.
const (
	ACLAccess  = "system.posix_acl_access"
	ACLDefault = "system.posix_acl_default"
)

func sortXattrs(xs []Xattr) {
	slices.SortFunc(xs, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
}

// An ACL's extended attribute: u32 version 2, then u16 tag, u16 permission,
// u32 id per entry (include/uapi/linux/posix_acl_xattr.h).
const (
	aclHeader  = 4
	aclEntry   = 8
	aclVersion = 2
)

// checkACL refuses what the kernel would refuse: the entries owner, users,
// group, groups, mask, others must stand in this order, and a mask must be
// there if users or groups are named.
func checkACL(v []byte) error {
	bad := func(why string) error { return fmt.Errorf("ACL %s: %w", why, errdefs.ErrInvalidArgument) }
	le := binary.LittleEndian
	if len(v) < aclHeader || (len(v)-aclHeader)%aclEntry != 0 || le.Uint32(v) != aclVersion {
		return bad("is not in the kernel's form")
	}
	order := map[uint16]int{0x01: 0, 0x02: 1, 0x04: 2, 0x08: 3, 0x10: 4, 0x20: 5}
	var count [6]int
	last := 0
	for at := aclHeader; at < len(v); at += aclEntry {
		rank, ok := order[le.Uint16(v[at:])]
		if !ok || rank < last || le.Uint16(v[at+2:]) > 7 {
			return bad("has an entry that is unknown or out of order")
		}
		last = rank
		count[rank]++
	}
	if count[0] != 1 || count[2] != 1 || count[4] > 1 || count[5] != 1 || (count[1]+count[3] > 0 && count[4] == 0) {
		return bad("lacks an entry or has one twice")
	}
	return nil
}

// checkCapability refuses what the kernel would refuse: only revisions 2 and 3
// of struct vfs_cap_data may be set (include/uapi/linux/capability.h).
func checkCapability(v []byte) error {
	if len(v) >= 4 {
		switch revision := binary.LittleEndian.Uint32(v) >> 24; {
		case revision == 2 && len(v) == 20, revision == 3 && len(v) == 24:
			return nil
		}
	}
	return fmt.Errorf("%d bytes are no file capabilities: %w", len(v), errdefs.ErrInvalidArgument)
}
