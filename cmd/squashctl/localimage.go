// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// localImage is an image whose blobs were received into a directory.
type localImage struct {
	dir    string
	store  content.Store
	result *adminapi.ExportResult

	mediaType string         // of the blob that is being received
	blob      content.Writer // nil: none is
	size      int64          // received of it
}

// newLocalImage makes a directory for an image below dir.
func newLocalImage(dir string) (*localImage, error) {
	tmp, err := os.MkdirTemp(dir, ".squash-export-")
	if err != nil {
		return nil, err
	}
	store, err := local.NewStore(tmp)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(tmp))
	}
	return &localImage{dir: tmp, store: store}, nil
}

func (l *localImage) remove() error {
	if l.blob != nil {
		l.blob.Close()
	}
	return os.RemoveAll(l.dir)
}

// take takes one message of the blobs: begin, data, end.
func (l *localImage) take(ctx context.Context, reply *adminapi.ExportResponse) (err error) {
	switch m := reply.Message.(type) {
	case *adminapi.ExportResponse_Blob:
		l.mediaType, l.size = m.Blob, 0
		l.blob, err = l.store.Writer(ctx, content.WithRef("blob"), content.WithDescriptor(ocispec.Descriptor{MediaType: m.Blob}))
	case *adminapi.ExportResponse_Data:
		if l.blob == nil {
			return errors.New("the daemon sends data of no blob")
		}
		l.size += int64(len(m.Data))
		_, err = l.blob.Write(m.Data)
	case *adminapi.ExportResponse_End:
		if l.blob == nil {
			return errors.New("the daemon ends what it did not begin")
		}
		// It is an error if other bytes came than were sent.
		err = l.blob.Commit(ctx, int64(m.End.Size), digest.Digest(m.End.Digest))
		if errdefs.IsAlreadyExists(err) { // two platforms may have the same layer
			err = nil
		}
		err = errors.Join(err, l.blob.Close())
		l.blob = nil
	}
	if err != nil {
		return fmt.Errorf("write a blob below %s: %w", filepath.Dir(l.dir), err)
	}
	return nil
}

func (l *localImage) target() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: l.result.MediaType, Digest: digest.Digest(l.result.Digest), Size: int64(l.result.Size)}
}

// archive writes an OCI archive; for Docker, with the file that it looks for.
func (l *localImage) archive(ctx context.Context, w io.Writer, name string, forDocker bool) error {
	opts := []archive.ExportOpt{archive.WithManifest(l.target(), name), archive.WithAllPlatforms()}
	if forDocker {
		if n := len(l.result.Platforms); n != 1 {
			return fmt.Errorf("a %s holds one platform, and the image has %d: choose one with --platform", dockerArchive, n)
		}
		p, err := platforms.Parse(l.result.Platforms[0].Platform)
		if err != nil {
			return fmt.Errorf("platform: %w", err)
		}
		opts = []archive.ExportOpt{archive.WithManifest(l.target(), name), archive.WithPlatform(platforms.OnlyStrict(p))}
	} else {
		opts = append(opts, archive.WithSkipDockerManifest())
	}
	// Export does not tell whether the end of the archive could be written; the buffer keeps the first error.
	b := bufio.NewWriterSize(w, 1<<20)
	err := archive.Export(ctx, l.store, b, opts...)
	if err == nil {
		err = b.Flush()
	}
	if err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	return nil
}

// directory makes an OCI image layout of what was received, and gives it its name.
func (l *localImage) directory(output, name string) error {
	target := l.target()
	target.Annotations = map[string]string{images.AnnotationImageName: name}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{target}}
	for file, value := range map[string]any{
		ocispec.ImageIndexFile:  index,
		ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
	} {
		data, err := json.Marshal(value)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(l.dir, file), data, 0o644); err != nil {
			return err
		}
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(l.dir, "ingest")), os.Chmod(l.dir, 0o755)); err != nil {
		return err
	}
	return os.Rename(l.dir, output)
}

// push uploads the image as ref.
func (l *localImage) push(ctx context.Context, cmd *cli.Command, ref string) error {
	plainHTTP := docker.MatchLocalhost
	if cmd.Bool("plain-http") {
		plainHTTP = docker.MatchAllHosts
	}
	opts := []docker.RegistryOpt{docker.WithPlainHTTP(plainHTTP)}
	if user := cmd.String("user"); user != "" {
		password, ok := os.LookupEnv("SQUASHCTL_PASSWORD")
		if !ok {
			return errors.New("--user: the password is to be in the environment variable SQUASHCTL_PASSWORD")
		}
		opts = append(opts, docker.WithAuthorizer(docker.NewDockerAuthorizer(docker.WithAuthCreds(func(string) (string, string, error) {
			return user, password, nil
		}))))
	}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(opts...)})
	target := l.target()
	pusher, err := resolver.Pusher(ctx, ref+"@"+target.Digest.String())
	if err != nil {
		return fmt.Errorf("push to %s: %w", ref, err)
	}
	wrap := func(h images.Handler) images.Handler { return h }
	if err := remotes.PushContent(ctx, pusher, target, l.store, nil, platforms.All, wrap); err != nil {
		return fmt.Errorf("push to %s: %w", ref, err)
	}
	return nil
}
