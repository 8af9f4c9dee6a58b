package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxPlanSize is the longest plan that is read, in bytes.
const MaxPlanSize = 256 << 10

// Encode gives the plan as JSON, checked.
func (p *Plan) Encode() ([]byte, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode the plan: %w", err)
	}
	if len(data) > MaxPlanSize {
		return nil, fmt.Errorf("the plan has %d bytes; at most %d can be stored", len(data), MaxPlanSize)
	}
	return data, nil
}

// DecodePlan reads a plan that Encode wrote. It refuses what MakePlan would not make, so that whoever carries a plan out may rely on its names,
// sizes and references.
func DecodePlan(data []byte) (*Plan, error) {
	if len(data) > MaxPlanSize {
		return nil, fmt.Errorf("the plan has %d bytes; at most %d are read", len(data), MaxPlanSize)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	p := &Plan{}
	if err := decoder.Decode(p); err != nil {
		return nil, fmt.Errorf("decode the plan: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("decode the plan: there is more behind it")
	}
	if err := p.validate(); err != nil {
		return nil, err
	}
	return p, nil
}
