// SPDX-License-Identifier: Apache-2.0

// Package treetest owns the oracle for what a container must see: it makes
// images, lets containerd and the kernel show them, and compares trees.
//
//	steps ──Layer──▶ tar bytes ──Overlay──▶ overlayfs mount ──Read──▶ Tree ─┐
//	                     │                                                  Diff ──▶ findings
//	                     └──────▶ code under test ──▶ mount ──Read──▶ Tree ─┘
//
// It is the judge of invariant 1 of the design (a container sees exactly what
// overlayfs over the same layers would show) and therefore shares no code
// with the project: layers are unpacked by containerd's own applier in the way
// its walking differ does it on overlay mounts, stacked by a real overlayfs,
// and read back with system calls.
//
// It is test support: its functions need root, a disk file system with
// extended attributes below the test's temporary directory, and overlayfs.
// What is missing fails the test. Cases and images may be used by parallel
// tests.
package treetest

// Case is one image.
type Case struct {
	// Name is unique and fit for testing.T.Run.
	Name string

	// Layers are uncompressed tar streams, bottom layer first.
	Layers [][]byte

	// Refused, when not empty, says why containerd's applier takes the top
	// layer for an error. There is no reference for what such an image shows;
	// the layers below the top one are valid.
	Refused string

	// Artefact, when not empty, says which accident of unpacking by system
	// calls the reference shows for this image. Code under test may decide
	// not to follow it.
	Artefact string
}

// Cases returns all hand-made images. The bytes are the same at every call.
func Cases() []Case {
	var all []Case
	for _, group := range [][]Case{
		deletionCases(),
		replacementCases(),
		impliedCases(),
		linkCases(),
		nameCases(),
		metadataCases(),
		timeCases(),
		xattrCases(),
		aclCases(),
		deviceCases(),
		dataCases(),
		formatCases(),
		stackCases(),
	} {
		all = append(all, group...)
	}
	return all
}

// valid makes a Case which the reference applier accepts.
func valid(name string, layers ...[]byte) Case {
	return Case{Name: name, Layers: layers}
}

// refused makes a Case whose top layer the reference applier rejects.
func refused(name, why string, layers ...[]byte) Case {
	return Case{Name: name, Layers: layers, Refused: why}
}

// artefact makes a Case that shows an accident of the reference.
func artefact(name, what string, layers ...[]byte) Case {
	return Case{Name: name, Layers: layers, Artefact: what}
}
