// SPDX-License-Identifier: Apache-2.0

package treetest

import "encoding/binary"

// capability is a valid security.capability value, revision 2: cap_net_raw,
// effective and permitted.
func capability() string {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	for _, word := range []uint32{1 << 13, 0, 0, 0} { // permitted, inheritable; low, high
		b = binary.LittleEndian.AppendUint32(b, word)
	}
	return string(b)
}

// capability3 is the same for the user namespace whose root is rootid,
// revision 3.
func capability3(rootid uint32) string {
	b := []byte(capability())
	binary.LittleEndian.PutUint32(b, 0x03000001)
	return string(binary.LittleEndian.AppendUint32(b, rootid))
}

// Tags of ACL entries, as in system.posix_acl_* values.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// acl encodes triples of tag, permissions and id. The id counts for aclUser
// and aclGroup only.
func acl(triples ...uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for i := 0; i < len(triples); i += 3 {
		tag, perm, id := triples[i], triples[i+1], triples[i+2]
		if tag != aclUser && tag != aclGroup {
			id = 1<<32 - 1
		}
		b = binary.LittleEndian.AppendUint16(b, uint16(tag))
		b = binary.LittleEndian.AppendUint16(b, uint16(perm))
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	return string(b)
}
