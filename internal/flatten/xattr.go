// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/squash-snapshotter/squash/internal/layer"
)

const capability = "security.capability"

// takes tells whether the kernel lets an inode of this type have the attribute.
func (n *node) takes(name string) bool {
	switch {
	case strings.HasPrefix(name, "user."):
		return n.typ == layer.TypeReg || n.typ == layer.TypeDir
	case name == layer.ACLAccess:
		return n.typ != layer.TypeSymlink
	case name == layer.ACLDefault:
		return n.typ == layer.TypeDir
	}
	return true
}

// setXattr keeps the attributes sorted by name.
func (n *node) setXattr(x layer.Xattr) {
	i, found := slices.BinarySearchFunc(n.xattrs, x.Name, func(a layer.Xattr, name string) int { return strings.Compare(a.Name, name) })
	// Lists may be shared with the node that this one takes after.
	if found {
		n.xattrs = slices.Clone(n.xattrs)
		n.xattrs[i] = x
		return
	}
	n.xattrs = slices.Insert(slices.Clip(n.xattrs), i, x)
}

func (n *node) dropXattr(name string) {
	if slices.ContainsFunc(n.xattrs, func(x layer.Xattr) bool { return x.Name == name }) {
		n.xattrs = slices.DeleteFunc(slices.Clone(n.xattrs), func(x layer.Xattr) bool { return x.Name == name })
	}
}

// Tags of POSIX ACL entries, as in the kernel's include/uapi/linux/posix_acl.h.
const (
	aclUserObj  = 0x01
	aclGroupObj = 0x04
	aclMask     = 0x10
	aclOther    = 0x20
	aclHeader   = 4
	aclEntry    = 8
)

// settleACL does to the access ACL what chmod does: owner, others, and the
// mask or else the group take their bits from the mode. An ACL that then says
// no more than the mode is none.
func (n *node) settleACL() {
	i := slices.IndexFunc(n.xattrs, func(x layer.Xattr) bool { return x.Name == layer.ACLAccess })
	if i < 0 {
		return
	}
	v := slices.Clone(n.xattrs[i].Value)
	le := binary.LittleEndian
	group, extended := -1, false
	for at := aclHeader; at+aclEntry <= len(v); at += aclEntry {
		switch tag := le.Uint16(v[at:]); tag {
		case aclUserObj:
			le.PutUint16(v[at+2:], uint16(n.mode>>6&7))
		case aclOther:
			le.PutUint16(v[at+2:], uint16(n.mode&7))
		case aclGroupObj:
			if group < 0 {
				group = at
			}
		case aclMask:
			group, extended = at, true
		default:
			extended = true
		}
	}
	if !extended {
		n.dropXattr(layer.ACLAccess)
		return
	}
	if group >= 0 {
		le.PutUint16(v[group+2:], uint16(n.mode>>3&7))
	}
	n.setXattr(layer.Xattr{Name: layer.ACLAccess, Value: v})
}
