package cloudinit

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// maxPhoneHomeURLs is more than a rack has coordinators.
const maxPhoneHomeURLs = 16

// phoneHomeSource is run by cloud-init's scripts-vendor module, in the final stage of the first boot. It is Python because cloud-init is,
// so an interpreter is there; no other program that can make an HTTP request is.
//
//go:embed phone-home.py
var phoneHomeSource string

// phoneHomeScript posts to the URLs in turn until one answers 204. cloud-init's own phone_home module takes one URL only, and a
// user-data that has that key would replace it.
func phoneHomeScript(urls []string) (string, error) {
	if len(urls) > maxPhoneHomeURLs {
		return "", fmt.Errorf("%d phone-home URLs are more than %d", len(urls), maxPhoneHomeURLs)
	}
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return "", errors.New("phone-home URL must be an http or https URL with a host")
		}
	}
	// JSON's strings of ASCII are Python's.
	list, err := json.Marshal(urls)
	if err != nil {
		return "", fmt.Errorf("render the phone-home script: %w", err)
	}
	return strings.Replace(phoneHomeSource, "@URLS@", string(list), 1), nil
}
