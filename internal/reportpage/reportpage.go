// SPDX-License-Identifier: Apache-2.0

// Package reportpage writes the report about an image as one HTML page that needs nothing else: no network, and no
// script but its own, which only draws the map of directories. All numbers are in plain HTML as well.
//
// Names, commands and advice come from images. They reach the page as text that can be seen (see legible) and through
// html/template or as JSON, never as markup, and the page's policy lets the browser run and load nothing that is not
// part of this package.
package reportpage

import (
	"crypto/sha256"
	_ "embed" // the parts of the page
	"encoding/base64"
	"fmt"
	"html/template"
	"io"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string

	pageTemplate = template.Must(template.New("page").Parse(pageHTML))

	// policy allows the page's own style and script, by digest, and nothing else.
	policy = fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'",
		source(pageCSS), source(pageJS))
)

func source(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// Write writes the page. The same report gives the same bytes.
func Write(w io.Writer, r *adminapi.ReportResponse) error {
	if err := pageTemplate.Execute(w, newPage(r)); err != nil {
		return fmt.Errorf("report page: %w", err)
	}
	return nil
}
