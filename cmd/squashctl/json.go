// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// printJSON writes a message as a JSON object and ends the line. Names and order of its fields are those of the API;
// numbers are numbers; of paths, which may be any bytes, what is not UTF-8 is replaced. Nothing is left out but messages that
// are not there.
func printJSON(w io.Writer, m proto.Message) error {
	var b bytes.Buffer
	if err := appendMessage(&b, m.ProtoReflect()); err != nil {
		return err
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}

// printLine is printJSON for one of several objects: its key says which it is.
func printLine(w io.Writer, key string, m proto.Message) error {
	var b bytes.Buffer
	b.WriteString(`{"` + key + `":`)
	if err := appendMessage(&b, m.ProtoReflect()); err != nil {
		return err
	}
	b.WriteString("}\n")
	_, err := w.Write(b.Bytes())
	return err
}

func appendMessage(b *bytes.Buffer, m protoreflect.Message) error {
	b.WriteByte('{')
	fields := m.Descriptor().Fields()
	first := true
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.HasPresence() && !m.Has(f) {
			continue
		}
		if !first {
			b.WriteByte(',')
		}
		first = false
		b.WriteString(`"` + string(f.Name()) + `":`)
		if err := appendField(b, f, m.Get(f)); err != nil {
			return err
		}
	}
	b.WriteByte('}')
	return nil
}

func appendField(b *bytes.Buffer, f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	if !f.IsList() {
		return appendValue(b, f, v)
	}
	b.WriteByte('[')
	for i := range v.List().Len() {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := appendValue(b, f, v.List().Get(i)); err != nil {
			return err
		}
	}
	b.WriteByte(']')
	return nil
}

func appendValue(b *bytes.Buffer, f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	if f.Kind() == protoreflect.MessageKind {
		return appendMessage(b, v.Message())
	}
	value := v.Interface()
	if raw, ok := value.([]byte); ok {
		value = strings.ToValidUTF8(string(raw), "\uFFFD")
	}
	text := json.NewEncoder(b)
	text.SetEscapeHTML(false)
	if err := text.Encode(value); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1) // the end of the line
	return nil
}
