// Package certificate makes and checks the signed record of a disk's wipe.
//
// A certificate is a JSON object with two members: "certificate", what is certified, and "signature", a JSON Web Signature with its payload
// detached (RFC 7515, appendix F; ES256). The payload is the first member's value as it stands in the file without the white space between its
// tokens, so that it may be indented but not otherwise rewritten. The signature's x5c header holds the coordinator's certificate, which chains
// to the rack's CA: nothing else is needed to check it.
package certificate

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"

	"bloomery/internal/pki"
	"bloomery/partition/wipe"
)

// Format is the value of a certificate's format field.
const Format = "bloomery.wipe-certificate/v1"

// MaxBytes bounds a signed certificate.
const MaxBytes = 64 << 10

// Certificate is what a coordinator certifies: what a machine's agent did to a disk and found after it.
type Certificate struct {
	Format string `json:"format"`
	// ID is that of the job's step, unique in the rack.
	ID      string  `json:"id"`
	Rack    string  `json:"rack"`
	Machine Machine `json:"machine"`
	Job     string  `json:"job"`
	Disk    Disk    `json:"disk"`
	// Successful says that the wipe ended as it should; Error is why it did not.
	Successful   bool        `json:"successful"`
	Error        string      `json:"error,omitempty"`
	Wipe         wipe.Result `json:"wipe"`
	AgentVersion string      `json:"agent_version,omitempty"`
	// Coordinator signed at Issued, by its own clock.
	Coordinator string    `json:"coordinator"`
	Issued      time.Time `json:"issued"`
}

// Machine is the server that the disk was in.
type Machine struct {
	Name   string `json:"name"`
	UUID   string `json:"uuid,omitempty"`
	Serial string `json:"serial,omitempty"`
}

// Disk is what a disk says of itself.
type Disk struct {
	Serial    string `json:"serial,omitempty"`
	WWN       string `json:"wwn,omitempty"`
	Vendor    string `json:"vendor,omitempty"`
	Model     string `json:"model,omitempty"`
	Firmware  string `json:"firmware,omitempty"`
	Transport string `json:"transport,omitempty"`
	SizeBytes int64  `json:"size_bytes,omitempty"`
}

// signed is the file.
type signed struct {
	Certificate json.RawMessage `json:"certificate"`
	Signature   string          `json:"signature"`
}

// Sign certifies with a coordinator's certificate.
func Sign(c Certificate, coordinator *tls.Certificate) ([]byte, error) {
	key, ok := coordinator.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("sign a wipe's certificate: the coordinator's key is a %T, want one of ECDSA", coordinator.PrivateKey)
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("sign a wipe's certificate: %w", err)
	}
	var chain []string
	for _, der := range coordinator.Certificate {
		chain = append(chain, base64.StdEncoding.EncodeToString(der))
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithHeader("x5c", chain))
	if err != nil {
		return nil, fmt.Errorf("sign a wipe's certificate: %w", err)
	}
	object, err := signer.Sign(payload)
	if err != nil {
		return nil, fmt.Errorf("sign a wipe's certificate: %w", err)
	}
	signature, err := object.DetachedCompactSerialize()
	if err != nil {
		return nil, fmt.Errorf("sign a wipe's certificate: %w", err)
	}
	data, err := json.Marshal(signed{payload, signature})
	if err == nil && len(data) > MaxBytes {
		err = fmt.Errorf("%d bytes are more than %d", len(data), MaxBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("sign a wipe's certificate: %w", err)
	}
	return data, nil
}

// Verify checks a certificate's signature, and that who made it was a coordinator of a rack with one of the roots at that time.
func Verify(data []byte, roots []*x509.Certificate) (*Certificate, error) {
	c, err := verify(data, roots)
	if err != nil {
		return nil, fmt.Errorf("wipe certificate: %w", err)
	}
	return c, nil
}

func verify(data []byte, roots []*x509.Certificate) (*Certificate, error) {
	if len(data) > 2*MaxBytes {
		return nil, fmt.Errorf("%d bytes are more than %d", len(data), 2*MaxBytes)
	}
	var file signed
	if err := strict(data, &file); err != nil {
		return nil, err
	}
	var payload bytes.Buffer
	if err := json.Compact(&payload, file.Certificate); err != nil {
		return nil, fmt.Errorf("field certificate: %w", err)
	}
	var c Certificate
	if err := strict(payload.Bytes(), &c); err != nil {
		return nil, fmt.Errorf("field certificate: %w", err)
	}
	if c.Format != Format {
		return nil, fmt.Errorf("field certificate.format: %q, want %q", c.Format, Format)
	}
	object, err := jose.ParseDetached(file.Signature, payload.Bytes(), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, fmt.Errorf("field signature: %w", err)
	}
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	chains, err := object.Signatures[0].Header.Certificates(x509.VerifyOptions{
		Roots: pool, CurrentTime: c.Issued, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, fmt.Errorf("who signed it: %w", err)
	}
	node, err := pki.NodeOf(chains)
	if err != nil {
		return nil, fmt.Errorf("who signed it: %w", err)
	}
	if err := object.DetachedVerify(payload.Bytes(), chains[0][0].PublicKey); err != nil {
		return nil, errors.New("the signature does not fit what it stands under")
	}
	if node != c.Coordinator {
		return nil, fmt.Errorf("it says that coordinator %q signed it, and %q did", c.Coordinator, node)
	}
	return &c, nil
}

func strict(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return errors.New("something follows the object")
	}
	return nil
}
