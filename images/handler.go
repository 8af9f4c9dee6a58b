package images

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"
)

// Handler serves GET and HEAD of /images/{name}/manifest.json, /images/{name}/manifest.json.minisig and /images/{name}/data,
// with byte ranges (RFC 9110, section 14), of images that a trusted key has signed. Who may ask is the caller's to decide.
func Handler(store *Store, logger *slog.Logger) http.Handler {
	h := &handler{store: store, logger: logger}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /images/{name}/"+ManifestFile, h.serveManifest)
	mux.HandleFunc("GET /images/{name}/"+SignatureFile, h.serveSignature)
	mux.HandleFunc("GET /images/{name}/"+DataFile, h.serveData)
	return mux
}

type handler struct {
	store  *Store
	logger *slog.Logger
}

func (h *handler) serveManifest(w http.ResponseWriter, r *http.Request) {
	manifest, _, err := h.store.servable(r.PathValue("name"))
	if err != nil {
		h.fail(w, r, err)
		return
	}
	setTag(w, manifest)
	w.Header().Set("Content-Type", "application/json")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(manifest))
}

func (h *handler) serveSignature(w http.ResponseWriter, r *http.Request) {
	manifest, signature, err := h.store.servable(r.PathValue("name"))
	if err != nil {
		h.fail(w, r, err)
		return
	}
	setTag(w, manifest)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(signature))
}

func (h *handler) serveData(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	data, err := h.store.open(name, DataFile)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	defer data.Close() // read only
	manifest, _, err := h.store.servable(name)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	setTag(w, manifest)
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, data)
}

// setTag names a version by its manifest, which fixes the data too.
func setTag(w http.ResponseWriter, manifest []byte) {
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(manifest)))
	w.Header().Set("Cache-Control", "private, max-age=31536000, immutable")
}

func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	var field *FieldError
	switch {
	case errors.Is(err, ErrNotFound), errors.As(err, &field):
		http.Error(w, "no such image", http.StatusNotFound)
	case errors.Is(err, ErrRevoked):
		http.Error(w, err.Error(), http.StatusForbidden)
	default:
		h.logger.ErrorContext(r.Context(), "serving image", "image", r.PathValue("name"), "error", err)
		http.Error(w, "the image cannot be read", http.StatusInternalServerError)
	}
}
