package inspect

import (
	"slices"
	"strings"
	"testing"
)

func TestMaskLine(t *testing.T) {
	for in, want := range map[string]string{
		"PASSWORD=x1":                              "PASSWORD=***",
		"DB_PASSWORD=\"a b\"":                      "DB_PASSWORD=***",
		"Environment=HF_TOKEN=abc OTHER=1":         "Environment=HF_TOKEN=*** OTHER=1",
		"NEW_RELIC_LICENSE_KEY=abc":                "NEW_RELIC_LICENSE_KEY=***",
		"PUBLIC_API_KEY=abc":                       "PUBLIC_API_KEY=***",
		"password: hunter2":                        "password: ***",
		`{"api_key": "abc", "x": 1}`:               `{"api_key": ***, "x": 1}`,
		"run --api-key abc --port 80":              "run --api-key *** --port 80",
		"run --api-key=abc --port 80":              "run --api-key=*** --port 80",
		"curl -H 'Authorization: Bearer abcdefgh'": "curl -H 'Authorization: *** ***'",
		"https://user:pw@host/x":                   "https://***@host/x",
		"https://tok@host/x":                       "https://***@host/x",
		"x hf_ABCDEFGHIJKLMNOPQ y":                 "x *** y",
		"x sk-ABCDEFGHIJKLMNOPQ y":                 "x *** y",
		"key eyJhbGciOi.eyJzdWIiOiIx.abc":          "key ***",
		"-----BEGIN RSA PRIVATE KEY-----\nMII":     "***",
		"AWS a9B8c7D6e5F4g3H2i1J0k9L8m7N6o5P4q3":   "AWS ***",

		// What is none stays: it is what the plan is made of.
		"--max-num-batched-tokens 4096":                       "--max-num-batched-tokens 4096",
		"--max-new-tokens=100 --tokenizer /x/y":               "--max-new-tokens=100 --tokenizer /x/y",
		"--pad-token=0":                                       "--pad-token=0",
		"--ssl-key-file=/etc/x.key":                           "--ssl-key-file=/etc/x.key",
		"GPU-11111111-2222-3333-4444-555555555550":            "GPU-11111111-2222-3333-4444-555555555550",
		"/srv/models/Meta-Llama-3.1-70B-Instruct-AWQ-INT4/x1": "/srv/models/Meta-Llama-3.1-70B-Instruct-AWQ-INT4/x1",
		"root=UUID=0b1c2d3e-1111-2222-3333-444444444444 ro":   "root=UUID=0b1c2d3e-1111-2222-3333-444444444444 ro",
		"options nvidia NVreg_EnablePCIeGen3=1":               "options nvidia NVreg_EnablePCIeGen3=1",
		"--gpu-memory-utilization 0.9":                        "--gpu-memory-utilization 0.9",
		strings.Repeat("0a1b2c3d", 8):                         strings.Repeat("0a1b2c3d", 8),
	} {
		if got := maskLine(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestMaskArgs(t *testing.T) {
	got := maskArgs([]string{"x", "--hf-token", "abc", "-H", "X-Auth: abc", "--tokenizer", "abc", "--password=abc", "DSN=abc"})
	want := []string{"x", "--hf-token", "***", "-H", "***", "--tokenizer", "abc", "--password=***", "DSN=***"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
