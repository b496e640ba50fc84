package daemon

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	gocmp "github.com/google/go-cmp/cmp"

	"gpuvirt/api"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// The table of routes and openapi.yaml tell the same.
func TestOpenAPIRoutes(t *testing.T) {
	doc := loadDocument(t)
	type entry struct {
		Access string
		Query  map[string][]string // with the enumeration
		Body   bool
		Media  string
		Cond   bool
	}
	want, got := map[string]entry{}, map[string]entry{}
	for _, rt := range routes() {
		e := entry{Access: rt.access.String(), Query: map[string][]string{}, Body: rt.body, Media: rt.mediaType(), Cond: rt.conditional}
		for _, p := range rt.query {
			e.Query[p.name] = p.enum
			if slices.Equal(p.enum, bools()) {
				e.Query[p.name] = nil // the file says boolean
			}
		}
		got[rt.method+" "+rt.path] = e
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			e := entry{Query: map[string][]string{}, Body: op.RequestBody != nil}
			e.Access, _ = op.Extensions["x-access"].(string)
			if e.Access == "open" {
				e.Access = Nobody.String()
			}
			for _, p := range append(slices.Clone(item.Parameters), op.Parameters...) {
				switch p.Value.In {
				case openapi3.ParameterInQuery:
					e.Query[p.Value.Name] = enumOf(p.Value.Schema.Value)
				case openapi3.ParameterInHeader:
					e.Cond = e.Cond || p.Value.Name == "If-None-Match"
				}
			}
			for media := range firstOK(op).Content {
				e.Media = media
			}
			want[method+" "+path] = e
		}
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("openapi.yaml (-) and the table of routes (+) differ:\n%s", diff)
	}
}

func enumOf(s *openapi3.Schema) []string {
	var out []string
	for _, v := range s.Enum {
		out = append(out, fmt.Sprint(v))
	}
	return out
}

// Every name in a path has a rule, and it is the one of openapi.yaml.
func TestOpenAPIPathRules(t *testing.T) {
	doc := loadDocument(t)
	for name, pattern := range map[string]string{
		"GPUID": patternGPU, "PartitionID": patternPartition, "AssignmentName": patternAssignment, "OperationID": patternOperation, "TokenID": patternToken,
	} {
		if got := doc.Components.Schemas[name].Value.Pattern; got != pattern {
			t.Errorf("%s: openapi.yaml has pattern %s, the code %s", name, got, pattern)
		}
	}
	if got := doc.Components.Schemas["Labels"].Value.PropertyNames.Value.Pattern; got != patternLabel {
		t.Errorf("labels: openapi.yaml has pattern %s, the code %s", got, patternLabel)
	}
	for _, rt := range routes() {
		for part := range strings.SplitSeq(rt.path, "/") {
			name, isParam := strings.CutPrefix(part, "{")
			if err := checkPathParam(strings.TrimSuffix(name, "}"), strings.Repeat("0", 26)); isParam && err != nil {
				t.Errorf("%s: %v", rt.path, err)
			}
		}
	}
}

// The enumerations in openapi.yaml, in the code and in the packages they come
// from are the same.
func TestOpenAPIEnums(t *testing.T) {
	doc := loadDocument(t)
	constants := map[string][]string{}
	for _, pkg := range []string{"gpu", "operation", "p2v/report", "p2v/move"} {
		maps.Copy(constants, constantsOf(t, pkg))
	}
	for schema, goType := range map[string]string{
		"Kind": "gpu.Kind", "Placement": "gpu.Placement", "Hotplug": "gpu.Hotplug", "Origin": "gpu.Origin",
		"PartitionState": "gpu.PartitionState", "VMState": "gpu.VMState", "AssignmentState": "gpu.AssignmentState",
		"Policy": "gpu.Policy", "ComputeMode": "gpu.ComputeMode", "LicenseState": "gpu.LicenseState", "HostState": "gpu.HostState", "ConditionType": "gpu.ConditionType", "Code": "gpu.Code",
		"OperationStatus": "operation.Status", "StepStatus": "operation.StepStatus", "AssessmentState": "report.State", "MigrationPhase": "move.Phase", "ReservationState": "move.ReservationState",
	} {
		want := constants[goType]
		if got := slices.Sorted(slices.Values(enumOf(doc.Components.Schemas[schema].Value))); len(want) == 0 || !slices.Equal(got, want) {
			t.Errorf("%s in openapi.yaml is %v, but %s is %v", schema, got, goType, want)
		}
	}
	if got := enumOf(doc.Components.Schemas["Role"].Value); !slices.Equal(got, roles()) {
		t.Errorf("Role in openapi.yaml is %v, the code has %v", got, roles())
	}
	if got := enumOf(doc.Components.Schemas["GPUPlacement"].Value); !slices.Equal(got, gpuPlacements()) {
		t.Errorf("GPUPlacement in openapi.yaml is %v, the code has %v", got, gpuPlacements())
	}
	for goType, values := range map[string][]string{
		"gpu.Kind": texts(kinds()), "gpu.Placement": texts(placements()), "gpu.Hotplug": texts(hotplugs()), "gpu.Origin": texts(origins()),
		"gpu.Policy": texts(policies()), "gpu.PartitionState": texts(partitionStates()), "gpu.VMState": texts(vmStates()),
		"gpu.AssignmentState": texts(assignmentStates()), "operation.Status": texts(statuses()), "report.State": texts(report.States()), "move.Phase": texts(move.Phases()),
	} {
		if got := slices.Sorted(slices.Values(values)); !slices.Equal(got, constants[goType]) {
			t.Errorf("%s is %v, the routes accept %v", goType, constants[goType], got)
		}
	}
}

// constantsOf reads the string constants of a package by type, sorted.
func constantsOf(t *testing.T, pkg string) map[string][]string {
	t.Helper()
	files, err := filepath.Glob("../" + pkg + "/*.go")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			typ, ok := spec.Type.(*ast.Ident)
			if !ok || len(spec.Values) != 1 {
				return true
			}
			if lit, ok := spec.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				v, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				name := filepath.Base(pkg) + "." + typ.Name
				out[name] = append(out[name], v)
			}
			return true
		})
	}
	for _, v := range out {
		slices.Sort(v)
	}
	return out
}

func wireTypes() map[string]reflect.Type {
	types := map[string]reflect.Type{
		"Problem": reflect.TypeFor[api.Problem](), "Blocker": reflect.TypeFor[api.Blocker](), "Difference": reflect.TypeFor[api.Difference](),
		"Info": reflect.TypeFor[api.Info](), "Health": reflect.TypeFor[api.Health](), "Event": reflect.TypeFor[api.Event](),
		"Condition": reflect.TypeFor[api.Condition](), "GPU": reflect.TypeFor[api.GPU](), "Driver": reflect.TypeFor[api.Driver](),
		"MIGMode": reflect.TypeFor[api.MIGMode](), "ECC": reflect.TypeFor[api.ECC](), "SRIOV": reflect.TypeFor[api.SRIOV](), "GPUPatch": reflect.TypeFor[api.GPUPatch](),
		"Profile": reflect.TypeFor[api.Profile](), "Capacity": reflect.TypeFor[api.Capacity](),
		"ProfileCapacity": reflect.TypeFor[api.ProfileCapacity](), "GPUCapacity": reflect.TypeFor[api.GPUCapacity](),
		"MIG": reflect.TypeFor[api.MIG](), "Layout": reflect.TypeFor[api.Layout](), "LayoutInstance": reflect.TypeFor[api.LayoutInstance](),
		"VFs": reflect.TypeFor[api.VFs](), "Function": reflect.TypeFor[api.Function](), "VFsRequest": reflect.TypeFor[api.VFsRequest](),
		"VGPUSettings": reflect.TypeFor[api.VGPUSettings](), "VGPUSettingsRequest": reflect.TypeFor[api.VGPUSettingsRequest](), "MixedSizeState": reflect.TypeFor[api.MixedSizeState](),
		"SchedulerState": reflect.TypeFor[api.SchedulerState](), "Scheduler": reflect.TypeFor[api.Scheduler](), "SchedulerRequest": reflect.TypeFor[api.SchedulerRequest](),
		"ApplyRequest": reflect.TypeFor[api.ApplyRequest](), "NamedAssignmentRequest": reflect.TypeFor[api.NamedAssignmentRequest](),
		"Compute":  reflect.TypeFor[api.Compute](),
		"Settings": reflect.TypeFor[api.Settings](), "Setting": reflect.TypeFor[api.Setting](),
		"Handle": reflect.TypeFor[api.Handle](), "Holder": reflect.TypeFor[api.Holder](), "Partition": reflect.TypeFor[api.Partition](),
		"Observed": reflect.TypeFor[api.Observed](), "License": reflect.TypeFor[api.License](), "Usage": reflect.TypeFor[api.Usage](),
		"PartitionRequest": reflect.TypeFor[api.PartitionRequest](), "VM": reflect.TypeFor[api.VM](), "Hostdev": reflect.TypeFor[api.Hostdev](),
		"StartCheckRequest": reflect.TypeFor[api.StartCheckRequest](), "StartCheck": reflect.TypeFor[api.StartCheck](), "StartFinding": reflect.TypeFor[api.StartFinding](),
		"AssignmentRequest": reflect.TypeFor[api.AssignmentRequest](), "Assignment": reflect.TypeFor[api.Assignment](),
		"Attached": reflect.TypeFor[api.Attached](), "Plan": reflect.TypeFor[api.Plan](), "PlanStep": reflect.TypeFor[api.PlanStep](),
		"Operation": reflect.TypeFor[api.Operation](), "Step": reflect.TypeFor[api.Step](), "LogLine": reflect.TypeFor[api.LogLine](),
		"Token": reflect.TypeFor[api.Token](), "TokenRequest": reflect.TypeFor[api.TokenRequest](), "TokenCreated": reflect.TypeFor[api.TokenCreated](),
		"Source": reflect.TypeFor[api.Source](), "Assessment": reflect.TypeFor[api.Assessment](), "AssessmentRequest": reflect.TypeFor[api.AssessmentRequest](),
		"Migration": reflect.TypeFor[api.Migration](), "MigrationRequest": reflect.TypeFor[api.MigrationRequest](), "MigrationPatch": reflect.TypeFor[api.MigrationPatch](),
		"CopyRequest": reflect.TypeFor[api.CopyRequest](), "PlanRequest": reflect.TypeFor[api.PlanRequest](), "PlanPartitionRequest": reflect.TypeFor[api.PlanPartitionRequest](),
		"VMRequest": reflect.TypeFor[api.VMRequest](), "NICRequest": reflect.TypeFor[api.NICRequest](), "CheckRequest": reflect.TypeFor[api.CheckRequest](),
		"DiskFromRequest": reflect.TypeFor[api.DiskFromRequest](),
		"TryRequest":      reflect.TypeFor[api.TryRequest](), "AcceptRequest": reflect.TypeFor[api.AcceptRequest](),
		"KeyRequest": reflect.TypeFor[api.KeyRequest](), "Key": reflect.TypeFor[api.Key](), "ReserveRequest": reflect.TypeFor[api.ReserveRequest](), "Reservation": reflect.TypeFor[api.Reservation](),
		"WaiverRequest": reflect.TypeFor[api.WaiverRequest](), "MigrationList": reflect.TypeFor[api.List[api.Migration]](),
		"AssessmentList": reflect.TypeFor[api.List[api.Assessment]](),
		"TokenList":      reflect.TypeFor[api.List[api.Token]](),
		"GPUList":        reflect.TypeFor[api.List[api.GPU]](), "ProfileList": reflect.TypeFor[api.ProfileList](),
		"PartitionList": reflect.TypeFor[api.List[api.Partition]](), "VMList": reflect.TypeFor[api.List[api.VM]](),
		"AssignmentList": reflect.TypeFor[api.List[api.Assignment]](), "OperationList": reflect.TypeFor[api.List[api.Operation]](),
	}
	maps.Copy(types, movingTypes())
	return types
}

// movingTypes are the types that inspections, what follows from them and copies are made of,
// by their schema.
func movingTypes() map[string]reflect.Type {
	out := map[string]reflect.Type{}
	named := map[reflect.Type]string{
		reflect.TypeFor[report.Report](): "Inspection", reflect.TypeFor[assess.Assessment](): "Findings", reflect.TypeFor[api.MigrationPlan](): "MigrationPlan",
		reflect.TypeFor[assess.Wish](): "PlanWish",
	}
	prefixes := map[string]string{"report": "Inspected", "assess": "Plan", "move": "Migration", "verify": "Verify"}
	var add func(t reflect.Type)
	add = func(t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || t.PkgPath() == "time" {
			return
		}
		name := cmp.Or(named[t], prefixes[path.Base(t.PkgPath())]+t.Name())
		if named[t] == "" && prefixes[path.Base(t.PkgPath())] == "" {
			return // of package api, which has its own
		}
		out[name] = t
		for _, f := range reflect.VisibleFields(t) {
			if f.Tag != "" && f.Tag.Get("json") != "-" {
				add(f.Type)
			}
		}
	}
	for _, t := range []reflect.Type{
		reflect.TypeFor[report.Report](), reflect.TypeFor[assess.Assessment](), reflect.TypeFor[api.MigrationPlan](),
		reflect.TypeFor[move.Copy](), reflect.TypeFor[move.Disk](), reflect.TypeFor[move.Progress](), reflect.TypeFor[move.Forecast](),
		reflect.TypeFor[move.VMWish](), reflect.TypeFor[move.VM](), reflect.TypeFor[move.Attempt](), reflect.TypeFor[move.DiskFrom](),
	} {
		add(t)
	}
	return out
}

// Each schema has the fields of its Go type, and requires those that are always sent.
func TestOpenAPITypes(t *testing.T) {
	doc := loadDocument(t)
	types := wireTypes()
	for name, ref := range doc.Components.Schemas {
		if len(ref.Value.Properties) > 0 && types[name] == nil {
			t.Errorf("schema %s has no Go type", name)
		}
	}
	kinds := map[reflect.Kind]string{ //nolint:exhaustive // what the wire types are made of
		reflect.String: "string", reflect.Bool: "boolean", reflect.Int: "integer", reflect.Int64: "integer", reflect.Uint64: "integer", reflect.Uint32: "integer",
		reflect.Float64: "number",
		reflect.Slice:   "array", reflect.Map: "object", reflect.Struct: "object",
	}
	for name, typ := range types {
		ref := doc.Components.Schemas[name]
		if ref == nil {
			t.Errorf("there is no schema %s", name)
			continue
		}
		want, required := map[string]string{}, []string{}
		for _, f := range reflect.VisibleFields(typ) {
			if f.Anonymous || !f.IsExported() {
				continue
			}
			tag, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
			if tag == "-" {
				continue
			}
			ft := f.Type
			if ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			want[tag] = kinds[ft.Kind()]
			if ft.PkgPath() == "time" {
				want[tag] = "string"
			}
			if opts != "omitempty" && opts != "omitzero" {
				required = append(required, tag)
			}
		}
		got := map[string]string{}
		for field, p := range ref.Value.Properties {
			got[field] = strings.Join(p.Value.Type.Slice(), ",")
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("%s: Go type (-) and schema (+) differ:\n%s", name, diff)
		}
		if diff := gocmp.Diff(slices.Sorted(slices.Values(required)), slices.Sorted(slices.Values(ref.Value.Required))); diff != "" {
			t.Errorf("%s: required in Go (-) and in the schema (+) differ:\n%s", name, diff)
		}
	}
}

// Every example fits its schema and decodes strictly into its Go type.
func TestOpenAPIExamples(t *testing.T) {
	doc := loadDocument(t)
	types := wireTypes()
	used := map[*openapi3.Example]bool{}
	check := func(where string, media *openapi3.MediaType) {
		for name, ex := range media.Examples {
			used[ex.Value] = true
			if fits := exampleFits(t, types, media.Schema, ex.Value.Value); !fits {
				t.Errorf("%s: example %s does not decode into its type", where, name)
			}
		}
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.RequestBody != nil {
				check(method+" "+path, op.RequestBody.Value.Content.Get(mediaJSON))
			}
			for status, r := range op.Responses.Map() {
				for _, media := range r.Value.Content {
					check(method+" "+path+" "+status, media)
				}
			}
		}
	}
	for name, ex := range doc.Components.Examples {
		if !used[ex.Value] {
			t.Errorf("example %s is not used", name)
		}
	}
}

func exampleFits(t *testing.T, types map[string]reflect.Type, schema *openapi3.SchemaRef, value any) bool {
	t.Helper()
	refs := []string{schema.Ref}
	for _, alt := range schema.Value.AnyOf {
		refs = append(refs, alt.Ref)
	}
	body, err := encode(value)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range refs {
		typ := types[strings.TrimPrefix(ref, "#/components/schemas/")]
		if typ != nil && strictDecode(body, reflect.New(typ).Interface()) == nil {
			return true
		}
	}
	return false
}

func firstOK(op *openapi3.Operation) *openapi3.Response {
	for _, status := range []int{http.StatusOK, http.StatusAccepted, http.StatusCreated} {
		if r := op.Responses.Status(status); r != nil {
			return r.Value
		}
	}
	return &openapi3.Response{}
}

func strictDecode(body []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	return dec.Decode(into)
}
