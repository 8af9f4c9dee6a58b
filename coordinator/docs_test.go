package coordinator

import (
	"os"
	"strings"
	"testing"
)

// TestConfigurationPage parses the example that docs/configuration.md tells people to paste.
func TestConfigurationPage(t *testing.T) {
	page, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```yaml\n")
	example, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("docs/configuration.md has no yaml example")
	}
	config, err := ParseConfig([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	if config.Provisioning == nil || len(config.Networks) != 3 || len(config.Switches) != 1 || len(config.Listen.PhoneHome) != 1 || len(config.Networks[2].PhoneHome) != 2 {
		t.Errorf("the example is not complete: %+v", config)
	}
}
