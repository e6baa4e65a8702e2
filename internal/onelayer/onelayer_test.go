// SPDX-License-Identifier: Apache-2.0

package onelayer

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	manifest = digest.FromString("manifest")
	diffID   = digest.FromString("layer")
)

func TestConfigKeepsWhatItDoesNotConcern(t *testing.T) {
	for _, c := range []struct{ name, original, want string }{
		{"all kinds of fields",
			`{"os":"linux","architecture":"arm64","variant":"v8","created":"2026-01-02T03:04:05.000000006Z","author":"me","x-own":{"b":1,"a":[2]},` +
				`"config":{"Healthcheck":{"Test":["CMD","x"]},"OnBuild":["RUN y"],"Labels":{"l":"<v>"}},` +
				`"rootfs":{"type":"layers","diff_ids":["` + digest.FromString("a").String() + `","` + digest.FromString("b").String() + `"],"own":true},` +
				`"history":[{"created_by":"ADD","own":1},{"created_by":"ENV","empty_layer":true},{"created_by":"RUN","comment":"c"}]}`,
			`{"architecture":"arm64","author":"me","config":{"Healthcheck":{"Test":["CMD","x"]},"OnBuild":["RUN y"],"Labels":{"l":"\u003cv\u003e"}},"created":"2026-01-02T03:04:05.000000006Z",` +
				`"history":[{"created_by":"ADD","empty_layer":true,"own":1},{"created_by":"ENV","empty_layer":true},{"comment":"c","created_by":"RUN","empty_layer":true},` +
				`{"created":"2026-01-02T03:04:05.000000006Z","created_by":"squashctl export","comment":"2 layers of ` + manifest.String() + ` as one"}],"os":"linux",` +
				`"rootfs":{"diff_ids":["` + diffID.String() + `"],"own":true,"type":"layers"},"variant":"v8","x-own":{"b":1,"a":[2]}}`},
		{"nothing but a layer", `{"rootfs":{"diff_ids":["` + digest.FromString("a").String() + `"]}}`,
			`{"history":[{"created_by":"squashctl export","comment":"1 layer of ` + manifest.String() + ` as one"}],"rootfs":{"diff_ids":["` + diffID.String() + `"],"type":"layers"}}`},
	} {
		got, err := Config([]byte(c.original), manifest, diffID)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: got %v\n%s\nwant\n%s", c.name, err, got, c.want)
		}
	}
}

func TestWhatIsNoConfig(t *testing.T) {
	for _, text := range []string{"", "null", "[]", `{"history":1}`, `{"rootfs"`} {
		if got, err := Config([]byte(text), manifest, diffID); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %s, %v", text, got, err)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","history":[{}],"rootfs":{"diff_ids":[]}}`))
	f.Fuzz(func(t *testing.T, original []byte) {
		got, err := Config(original, manifest, diffID)
		if err != nil {
			return
		}
		again, err := Config(original, manifest, diffID)
		if err != nil || string(again) != string(got) {
			t.Errorf("%s, then %s, %v", got, again, err)
		}
	})
}

func TestManifestAndIndex(t *testing.T) {
	config := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString("config"), Size: 6}
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("blob"), Size: 4}
	got, err := Manifest(config, layer, map[string]string{"a": "b"})
	want := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + config.Digest.String() +
		`","size":6},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"` + layer.Digest.String() + `","size":4}],"annotations":{"a":"b"}}`
	if err != nil || string(got) != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, got, want)
	}
	config.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	got, err = Index([]ocispec.Descriptor{config}, nil)
	want = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + config.Digest.String() +
		`","size":6,"platform":{"architecture":"arm64","os":"linux"}}]}`
	if err != nil || string(got) != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, got, want)
	}
}
