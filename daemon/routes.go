package daemon

import (
	"net/http"
	"slices"

	"gpuvirt/p2v/report"
)

// A route is one thing that can be asked for.
type route struct {
	method string
	path   string // as in openapi.yaml
	access Role   // the least that may use it
	handle func(*Server, *request) (response, error)
	query  []param
	body   bool   // takes a JSON body
	limit  int64  // bytes of the body; 0: maxBody
	media  string // of the response; empty: JSON
	// conditional routes understand If-Match and If-None-Match.
	conditional bool
}

// Methods, shorter.
const (
	get    = http.MethodGet
	patch  = http.MethodPatch
	post   = http.MethodPost
	put    = http.MethodPut
	remove = http.MethodDelete
)

// routes is the whole interface and who may use it.
func routes() []route {
	return []route{
		{method: get, path: "/v1", access: Viewer, handle: getInfo, conditional: true},
		{method: get, path: "/v1/openapi.yaml", access: Nobody, handle: getOpenAPI, media: mediaYAML},
		{method: get, path: "/v1/health/live", access: Nobody, handle: getLive},
		{method: get, path: "/v1/health/ready", access: Nobody, handle: getReady},
		{method: get, path: "/v1/events", access: Viewer, handle: getEvents, query: eventQuery(), media: mediaEvents},
		{method: get, path: "/v1/config", access: Viewer, handle: getConfig, conditional: true},
		{method: get, path: "/metrics", access: Viewer, handle: getMetrics, media: mediaText},
		{method: get, path: "/v1/backup", access: Admin, handle: getBackup, media: mediaBinary},

		{method: get, path: "/v1/tokens", access: Admin, handle: listTokens, query: tokenQuery()},
		{method: post, path: "/v1/tokens", access: Admin, handle: createToken, query: dryRunQuery(), body: true},
		{method: get, path: "/v1/tokens/{token}", access: Admin, handle: getToken, conditional: true},
		{method: remove, path: "/v1/tokens/{token}", access: Admin, handle: deleteToken, query: dryRunQuery(), conditional: true},

		{method: get, path: "/v1/gpus", access: Viewer, handle: listGPUs, query: gpuQuery()},
		{method: get, path: "/v1/gpus/{gpu}", access: Viewer, handle: getGPU, conditional: true},
		{method: patch, path: "/v1/gpus/{gpu}", access: Admin, handle: patchGPU, query: dryRunQuery(), body: true, conditional: true},
		{method: get, path: "/v1/gpus/{gpu}/profiles", access: Viewer, handle: listProfiles, query: profileQuery()},
		{method: get, path: "/v1/gpus/{gpu}/mig", access: Viewer, handle: getMIG, conditional: true},
		{method: put, path: "/v1/gpus/{gpu}/mig", access: Admin, handle: putMIG, query: dryRunQuery(), body: true, conditional: true},
		{method: get, path: "/v1/gpus/{gpu}/sriov", access: Viewer, handle: getVFs, conditional: true},
		{method: put, path: "/v1/gpus/{gpu}/sriov", access: Admin, handle: putVFs, query: dryRunQuery(), body: true, conditional: true},
		{method: get, path: "/v1/gpus/{gpu}/vgpu", access: Viewer, handle: getVGPU, conditional: true},
		{method: put, path: "/v1/gpus/{gpu}/vgpu", access: Admin, handle: putVGPU, query: dryRunQuery(), body: true, conditional: true},
		{method: get, path: "/v1/capacity", access: Viewer, handle: getCapacity, query: capacityQuery()},

		{method: get, path: "/v1/partitions", access: Viewer, handle: listPartitions, query: partitionQuery()},
		{method: post, path: "/v1/partitions", access: Operator, handle: createPartition, query: dryRunQuery(), body: true},
		{method: get, path: "/v1/partitions/{partition}", access: Viewer, handle: getPartition, conditional: true},
		{method: remove, path: "/v1/partitions/{partition}", access: Operator, handle: deletePartition, query: dryRunQuery(), conditional: true},
		{method: post, path: "/v1/partitions/{partition}/adopt", access: Admin, handle: adoptPartition, query: dryRunQuery(), conditional: true},

		{method: get, path: "/v1/vms", access: Viewer, handle: listVMs, query: vmQuery()},
		{method: get, path: "/v1/vms/{vm}", access: Viewer, handle: getVM, conditional: true},
		{method: post, path: "/v1/vms/{vm}/check-start", access: Viewer, handle: checkStart, body: true},

		{method: get, path: "/v1/assignments", access: Viewer, handle: listAssignments, query: assignmentQuery()},
		{method: post, path: "/v1/assignments:apply", access: Operator, handle: applyAssignments, query: dryRunQuery(), body: true},
		{method: get, path: "/v1/assignments/{assignment}", access: Viewer, handle: getAssignment, conditional: true},
		{method: put, path: "/v1/assignments/{assignment}", access: Operator, handle: putAssignment, query: dryRunQuery(), body: true, conditional: true},
		{method: remove, path: "/v1/assignments/{assignment}", access: Operator, handle: deleteAssignment, query: dryRunQuery(), conditional: true},

		{method: get, path: "/v1/assessments", access: Operator, handle: listAssessments, query: assessmentQuery()},
		{method: post, path: "/v1/assessments", access: Admin, handle: createAssessment, query: dryRunQuery(), body: true, limit: maxInspection},
		{method: get, path: "/v1/assessments/{assessment}", access: Operator, handle: showAssessment, conditional: true},
		{method: remove, path: "/v1/assessments/{assessment}", access: Admin, handle: forgetAssessment, query: dryRunQuery(), conditional: true},
		{method: get, path: "/v1/assessments/{assessment}/inspection", access: Operator, handle: getInspection, conditional: true},
		{method: post, path: "/v1/assessments/{assessment}/finish", access: Admin, handle: finishAssessment, query: dryRunQuery(), conditional: true},

		{method: get, path: "/v1/migrations", access: Operator, handle: listMigrations, query: migrationQuery()},
		{method: post, path: "/v1/migrations", access: Admin, handle: createMigration, query: dryRunQuery(), body: true},
		{method: get, path: "/v1/migrations/{migration}", access: Operator, handle: getMigration, conditional: true},
		{method: patch, path: "/v1/migrations/{migration}", access: Admin, handle: patchMigration, query: dryRunQuery(), body: true, conditional: true},
		{method: remove, path: "/v1/migrations/{migration}", access: Admin, handle: deleteMigration, query: dryRunQuery(), conditional: true},
		{method: get, path: "/v1/migrations/{migration}/plan", access: Operator, handle: getMigrationPlan},
		{method: post, path: "/v1/migrations/{migration}/sync", access: Admin, handle: syncMigration, query: dryRunQuery(), conditional: true},
		{method: post, path: "/v1/migrations/{migration}/rehearse", access: Admin, handle: rehearseMigration, query: dryRunQuery(), body: true, conditional: true},
		{method: post, path: "/v1/migrations/{migration}/cutover", access: Admin, handle: cutOverMigration, query: dryRunQuery(), body: true, conditional: true},
		{method: post, path: "/v1/migrations/{migration}/reserve", access: Admin, handle: reserveMigration, query: dryRunQuery(), body: true, conditional: true},
		{method: post, path: "/v1/migrations/{migration}/withdraw", access: Admin, handle: withdrawMigration, query: dryRunQuery(), conditional: true},
		{method: post, path: "/v1/migrations/{migration}/fenced", access: Admin, handle: fencedMigration, query: dryRunQuery(), conditional: true},
		{method: post, path: "/v1/migrations/{migration}/accept", access: Admin, handle: acceptMigration, query: dryRunQuery(), body: true, conditional: true},
		{method: post, path: "/v1/migrations/{migration}/retry", access: Admin, handle: retryMigration, query: dryRunQuery(), conditional: true},
		{method: post, path: "/v1/migrations/{migration}/rollback", access: Admin, handle: rollbackMigration, query: dryRunQuery(), conditional: true},

		{method: get, path: "/v1/operations", access: Viewer, handle: listOperations, query: operationQuery()},
		{method: get, path: "/v1/operations/{operation}", access: Viewer, handle: getOperation, conditional: true},
		{method: get, path: "/v1/operations/{operation}/wait", access: Viewer, handle: waitOperation, query: waitQuery()},
		{method: post, path: "/v1/operations/{operation}/abort", access: Operator, handle: abortOperation},
		{method: post, path: "/v1/operations/{operation}/retry", access: Operator, handle: retryOperation},
		{method: post, path: "/v1/operations/{operation}/forget", access: Admin, handle: forgetOperation},
	}
}

// mediaType returns what a route answers with if all goes well.
func (r route) mediaType() string {
	if r.media == "" {
		return mediaJSON
	}
	return r.media
}

// streams reports whether a route's handler writes its response itself.
func (r route) streams() bool { return r.media == mediaEvents || r.media == mediaBinary }

// replaces reports whether a route writes to the object in its path.
func (r route) replaces() bool {
	return slices.Contains([]string{patch, put, remove}, r.method)
}

// The query parameters.

func dryRunQuery() []param { return []param{{name: "dry_run", enum: bools()}} }

func listQuery(filters ...param) []param {
	return append([]param{{name: "limit", check: checkLimit}, {name: "cursor", check: checkCursor}}, filters...)
}

func gpuQuery() []param {
	return listQuery(
		param{name: "vendor", check: checkText},
		param{name: "model", check: checkText},
		param{name: "managed", enum: bools()})
}

func profileQuery() []param { return listQuery(param{name: "kind", enum: texts(kinds())}) }

func capacityQuery() []param { return []param{{name: "profile", check: checkText}} }

func partitionQuery() []param {
	return listQuery(
		param{name: "gpu", check: checkGPU},
		param{name: "profile", check: checkText},
		param{name: "kind", enum: texts(kinds())},
		param{name: "origin", enum: texts(origins())},
		param{name: "state", enum: texts(partitionStates())},
		param{name: "assignment", check: checkAssignmentName})
}

func vmQuery() []param {
	return listQuery(
		param{name: "name", check: checkVM},
		param{name: "state", enum: texts(vmStates())})
}

func assignmentQuery() []param {
	return listQuery(
		param{name: "vm", check: checkVM},
		param{name: "profile", check: checkText},
		param{name: "gpu", check: checkGPU},
		param{name: "state", enum: texts(assignmentStates())})
}

func operationQuery() []param {
	return listQuery(
		param{name: "kind", check: checkText},
		param{name: "status", enum: texts(statuses())},
		param{name: "actor", check: checkText})
}

func assessmentQuery() []param { return listQuery(param{name: "state", enum: texts(report.States())}) }

func tokenQuery() []param {
	return listQuery(
		param{name: "name", check: checkAssignmentName},
		param{name: "role", enum: roles()})
}

func waitQuery() []param { return []param{{name: "timeout", check: checkTimeout}} }

func eventQuery() []param { return []param{{name: "after", check: checkEventID}} }
