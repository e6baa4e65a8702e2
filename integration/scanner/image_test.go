// SPDX-License-Identifier: Apache-2.0

package scanner

import (
	"crypto/md5"
	"errors"
	"fmt"
	"path"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/squash-snapshotter/squash/integration/images"
)

// deb is a package of Debian, with one file.
type deb struct{ name, version, file string }

// status is what dpkg knows of packages.
func status(debs ...deb) []byte {
	var text []byte
	for _, d := range debs {
		text = fmt.Appendf(text, `Package: %[1]s
Status: install ok installed
Priority: optional
Section: utils
Installed-Size: 12
Maintainer: Nobody <nobody@example.com>
Architecture: amd64
Source: %[1]s-source
Version: %[2]s
Depends: libc6
Description: %[1]s of a test
 More about it.

`, d.name, d.version)
	}
	return text
}

const dpkg = "var/lib/dpkg"

// install writes a package's file and what dpkg notes of it.
func (d deb) install(w *images.LayerWriter) error {
	content := []byte(d.name + " " + d.version + "\n")
	return errors.Join(
		w.File(d.file, 0o755, content),
		w.File(dpkg+"/info/"+d.name+".list", 0o644, fmt.Appendf(nil, "/.\n/usr\n/usr/bin\n/%s\n", d.file)),
		w.File(dpkg+"/info/"+d.name+".md5sums", 0o644, fmt.Appendf(nil, "%x  %s\n", md5.Sum(content), d.file)),
	)
}

// remove takes a package away again, but for its line in status.
func (d deb) remove(w *images.LayerWriter) error {
	return errors.Join(
		w.Whiteout(d.file),
		w.Whiteout(dpkg+"/info/"+d.name+".list"),
		w.Whiteout(dpkg+"/info/"+d.name+".md5sums"),
	)
}

// npm writes a package of Node.js.
func npm(w *images.LayerWriter, dir, name, version string) error {
	return errors.Join(
		w.Dir(dir+"/"+name, 0o755),
		w.File(dir+"/"+name+"/package.json", 0o644, fmt.Appendf(nil, `{"name": %q, "version": %q, "license": "MIT", "main": "index.js"}`, name, version)),
		w.File(dir+"/"+name+"/index.js", 0o644, fmt.Appendf(nil, "module.exports = %q\n", name)),
	)
}

const sitePackages = "usr/lib/python3/dist-packages"

// wheel writes a package of Python.
func wheel(w *images.LayerWriter, name, version string) error {
	info := sitePackages + "/" + name + "-" + version + ".dist-info"
	return errors.Join(
		w.Dir(info, 0o755),
		w.File(info+"/METADATA", 0o644, fmt.Appendf(nil, "Metadata-Version: 2.1\nName: %s\nVersion: %s\nLicense: Apache-2.0\nAuthor: Nobody\n", name, version)),
		w.File(info+"/RECORD", 0o644, fmt.Appendf(nil, "%s/__init__.py,,\n", name)),
		w.File(info+"/top_level.txt", 0o644, []byte(name+"\n")),
		w.Dir(sitePackages+"/"+name, 0o755),
		w.File(sitePackages+"/"+name+"/__init__.py", 0o644, []byte("# "+name+"\n")),
	)
}

func dirs(w *images.LayerWriter, names ...string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, w.Dir(name, 0o755))
	}
	return errors.Join(errs...)
}

var (
	kept    = deb{"kept", "1.2-3", "usr/bin/kept"}
	old     = deb{"upgraded", "1.0-1", "usr/bin/upgraded"}
	newer   = deb{"upgraded", "2.0-1", "usr/bin/upgraded"}
	removed = deb{"removed", "0.9", "usr/bin/removed"}
	app     = "opt/app/node_modules"
)

// planted is what a scanner has to find, and where.
var planted = []string{
	"deb kept 1.2-3 /var/lib/dpkg/status",
	"deb upgraded 2.0-1 /var/lib/dpkg/status",
	"npm left-pad 1.3.0 /usr/lib/node_modules/left-pad/package.json",
	"npm fresh 2.0.0 /opt/app/node_modules/fresh/package.json",
	"python requests 2.32.3 /" + sitePackages + "/requests-2.32.3.dist-info/METADATA",
	"go-module golang.org/x/sys * /bin/guest",
}

// hidden is what lower layers have and no container sees.
var hidden = []string{"upgraded 1.0-1", "removed", "covered", "requests 2.31.0", "gone"}

// recipe is an image with the databases of four kinds of packages, in layers that install, upgrade, remove and hide.
var recipe = []func(*images.LayerWriter) error{
	func(w *images.LayerWriter) error {
		return errors.Join(
			images.WriteBase(w, shared.guest),
			w.File("etc/debian_version", 0o644, []byte("12.8\n")),
			w.File("etc/os-release", 0o644, []byte("ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n")),
			dirs(w, "usr/bin", "var/lib", dpkg, dpkg+"/info"),
			kept.install(w), old.install(w), removed.install(w),
			w.File(dpkg+"/status", 0o644, status(kept, old, removed)),
		)
	},
	func(w *images.LayerWriter) error {
		return errors.Join(
			dirs(w, "usr/lib", "usr/lib/node_modules", "usr/lib/python3", sitePackages, "opt", "opt/app", app),
			npm(w, "usr/lib/node_modules", "left-pad", "1.3.0"),
			npm(w, app, "covered", "1.0.0"),
			wheel(w, "requests", "2.31.0"),
			wheel(w, "gone", "1.0"),
			w.Symlink("usr/bin/node-packages", "../lib/node_modules"),
		)
	},
	// apt-get upgrade, apt-get remove.
	func(w *images.LayerWriter) error {
		return errors.Join(
			dirs(w, "usr", "usr/bin", "var", "var/lib", dpkg, dpkg+"/info"),
			newer.install(w), removed.remove(w),
			w.File(dpkg+"/status", 0o644, status(kept, newer)),
		)
	},
	// pip install --upgrade, pip uninstall; the application's packages installed anew.
	func(w *images.LayerWriter) error {
		return errors.Join(
			dirs(w, "usr", "usr/lib", "usr/lib/python3", sitePackages),
			w.Whiteout(sitePackages+"/requests-2.31.0.dist-info"),
			wheel(w, "requests", "2.32.3"),
			w.Whiteout(sitePackages+"/gone-1.0.dist-info"),
			w.Whiteout(sitePackages+"/gone"),
			dirs(w, "opt", "opt/app", app),
			w.Opaque(app),
			npm(w, app, "fresh", "2.0.0"),
		)
	},
}

// packages makes the image, and with more one that has further layers.
func packages(t *testing.T, more ...func(*images.LayerWriter) error) v1.Image {
	t.Helper()
	var layers []v1.Layer
	for _, write := range append(recipe[:len(recipe):len(recipe)], more...) {
		l, err := shared.store.Layer("", images.Gzip, write)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	img, err := images.Image(images.OCI, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// push puts an image into the registry and returns its reference.
func push(t *testing.T, img v1.Image) string {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := shared.registry.Push(t.Context(), path.Join("scanned", "packages:"+d.Hex[:12]), img)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}
