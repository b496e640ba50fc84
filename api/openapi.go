package api

import _ "embed"

// OpenAPI is the description of the REST interface (OpenAPI 3.1, YAML), as
// served at /v1/openapi.yaml.
//
//go:embed openapi.yaml
var OpenAPI []byte
