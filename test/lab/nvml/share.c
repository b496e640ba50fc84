//go:build ignore
/* Go is told to ignore it: nvml.c includes it. */

/*
 * How vGPUs share a GPU by time. That is kept in a file of its own, <file>.vgpu, with a line
 * for each GPU whose driver is for hosts of VMs, and under it one for each type that can be
 * placed:
 *
 *   gpu <bus> <policy> <time slice> <ARR mode> <vGPUs that exist> <sizes can differ> <they may>
 *   type <id> <slots> <starts> <those that are free>
 *
 * Starts are numbers with commas between, or "-" for none. share.go writes it. A GPU that is
 * not in it answers that it does not support any of this.
 */
#include <strings.h>

struct place { unsigned int id, size; char starts[512], creatable[512]; };

struct share {
	char bus[32];
	unsigned int policy, slice, arr, vgpus, sizes, mixed, nplaces;
	struct place places[ALL];
};

static struct share shares[8];
static int nshares;

/* what is known of a GPU, or NULL */
static struct share *share_of(const struct gpu *g)
{
	FILE *f = fopen(path(".vgpu"), "re");
	char word[8];

	nshares = 0;
	while (f && fscanf(f, "%7s", word) == 1) {
		struct share *s = &shares[nshares ? nshares - 1 : 0];
		struct place *p = &s->places[s->nplaces];

		if (!strcmp(word, "gpu")) {
			s = &shares[nshares++];
			s->nplaces = 0;
			if (fscanf(f, "%31s %u %u %u %u %u %u", s->bus, &s->policy, &s->slice, &s->arr, &s->vgpus, &s->sizes, &s->mixed) != 7)
				abort();
		} else if (fscanf(f, "%u %u %511s %511s", &p->id, &p->size, p->starts, p->creatable) == 4) {
			s->nplaces++;
		} else {
			abort();
		}
	}
	if (f)
		fclose(f);
	for (int i = 0; i < nshares; i++)
		if (!strcasecmp(shares[i].bus, g->bus))
			return &shares[i];
	return NULL;
}

static void save_shares(void)
{
	FILE *f = fopen(path(".vgpu"), "we");

	if (!f)
		abort();
	for (struct share *s = shares; s < shares + nshares; s++) {
		fprintf(f, "gpu %s %u %u %u %u %u %u\n", s->bus, s->policy, s->slice, s->arr, s->vgpus, s->sizes, s->mixed);
		for (struct place *p = s->places; p < s->places + s->nplaces; p++)
			fprintf(f, "type %u %u %s %s\n", p->id, p->size, p->starts, p->creatable);
	}
	fclose(f);
}

/* the GPU of a handle and its share; "g" and "s" are theirs within the block */
#define SHARE(device) GPU(device) struct share *s = share_of(g); if (!s) FAIL(NOT_SUPPORTED)

#define MIN_SLICE 1000000u
#define MAX_SLICE 30000000u
#define OWN_SLICE 2000000u

nvmlReturn_t nvmlDeviceGetVgpuSchedulerCapabilities(nvmlDevice_t device, nvmlVgpuSchedulerCapabilities_t *c)
{
	CALL {
		SHARE(device)
		*c = (nvmlVgpuSchedulerCapabilities_t){
			.supportedSchedulers = {NVML_VGPU_SCHEDULER_POLICY_BEST_EFFORT, NVML_VGPU_SCHEDULER_POLICY_EQUAL_SHARE,
						NVML_VGPU_SCHEDULER_POLICY_FIXED_SHARE},
			.minTimeslice = MIN_SLICE, .maxTimeslice = MAX_SLICE, .isArrModeSupported = 1,
			.minFrequencyForARR = 63, .maxFrequencyForARR = 960, .minAvgFactorForARR = 1, .maxAvgFactorForARR = 60,
		};
	} DONE;
}

nvmlReturn_t nvmlDeviceGetVgpuSchedulerState(nvmlDevice_t device, nvmlVgpuSchedulerGetState_t *out)
{
	CALL {
		SHARE(device)
		if (g->current)
			FAIL(NOT_SUPPORTED)
		*out = (nvmlVgpuSchedulerGetState_t){.schedulerPolicy = s->policy, .arrMode = s->arr};
		if (s->arr == NVML_VGPU_SCHEDULER_ARR_ENABLE) {
			out->schedulerParams.vgpuSchedDataWithARR.avgFactor = 33;
			out->schedulerParams.vgpuSchedDataWithARR.timeslice = s->slice;
		} else {
			out->schedulerParams.vgpuSchedData.timeslice = s->slice;
		}
	} DONE;
}

nvmlReturn_t nvmlDeviceGetVgpuSchedulerState_v2(nvmlDevice_t device, nvmlVgpuSchedulerStateInfo_v2_t *out)
{
	CALL {
		SHARE(device)
		if (g->current)
			FAIL(NOT_SUPPORTED)
		if (out->engineId != NVML_VGPU_SCHEDULER_ENGINE_TYPE_GRAPHICS)
			FAIL(INVALID_ARGUMENT)
		out->schedulerPolicy = s->policy;
		out->avgFactor = s->arr == NVML_VGPU_SCHEDULER_ARR_ENABLE ? 33 : 0;
		out->timeslice = s->slice;
	} DONE;
}

/* what the driver does with a policy; slice 0 is its own, which it adapts */
static nvmlReturn_t schedule(struct gpu *g, struct share *s, unsigned int policy, unsigned int arr, unsigned int slice)
{
	if (policy < NVML_VGPU_SCHEDULER_POLICY_BEST_EFFORT || policy > NVML_VGPU_SCHEDULER_POLICY_FIXED_SHARE)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (g->current || s->vgpus)
		return NVML_ERROR_NOT_SUPPORTED;
	if (slice && (arr != NVML_VGPU_SCHEDULER_ARR_DISABLE || slice < MIN_SLICE || slice > MAX_SLICE))
		return NVML_ERROR_INVALID_ARGUMENT;
	s->policy = policy;
	s->arr = slice ? NVML_VGPU_SCHEDULER_ARR_DISABLE : NVML_VGPU_SCHEDULER_ARR_ENABLE;
	s->slice = slice ? slice : OWN_SLICE;
	save_shares();
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceSetVgpuSchedulerState(nvmlDevice_t device, nvmlVgpuSchedulerSetState_t *in)
{
	CALL {
		SHARE(device)
		ADMIN
		ret = schedule(g, s, in->schedulerPolicy, in->enableARRMode, in->schedulerParams.vgpuSchedData.timeslice);
	} DONE;
}

nvmlReturn_t nvmlDeviceSetVgpuSchedulerState_v2(nvmlDevice_t device, nvmlVgpuSchedulerState_v2_t *in)
{
	CALL {
		SHARE(device)
		ADMIN
		if (in->engineId != NVML_VGPU_SCHEDULER_ENGINE_TYPE_GRAPHICS)
			FAIL(INVALID_ARGUMENT)
		ret = schedule(g, s, in->schedulerPolicy, NVML_VGPU_SCHEDULER_ARR_ENABLE, 0);
	} DONE;
}

/* ---- vGPUs of different sizes */

nvmlReturn_t nvmlDeviceGetVgpuCapabilities(nvmlDevice_t device, nvmlDeviceVgpuCapability_t capability, unsigned int *result)
{
	CALL {
		SHARE(device)
		*result = capability == NVML_DEVICE_VGPU_CAP_HETEROGENEOUS_TIMESLICE_SIZES && s->sizes;
	} DONE;
}

nvmlReturn_t nvmlDeviceGetVgpuHeterogeneousMode(nvmlDevice_t device, nvmlVgpuHeterogeneousMode_t *mode)
{
	CALL {
		SHARE(device)
		if (mode->version != nvmlVgpuHeterogeneousMode_v1)
			FAIL(ARGUMENT_VERSION_MISMATCH)
		if (g->current || !s->sizes)
			FAIL(NOT_SUPPORTED)
		mode->mode = s->mixed ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
	} DONE;
}

nvmlReturn_t nvmlDeviceSetVgpuHeterogeneousMode(nvmlDevice_t device, const nvmlVgpuHeterogeneousMode_t *mode)
{
	CALL {
		SHARE(device)
		ADMIN
		if (mode->version != nvmlVgpuHeterogeneousMode_v1)
			FAIL(ARGUMENT_VERSION_MISMATCH)
		if (g->current || !s->sizes)
			FAIL(NOT_SUPPORTED)
		if (mode->mode != NVML_FEATURE_ENABLED && mode->mode != NVML_FEATURE_DISABLED)
			FAIL(INVALID_ARGUMENT)
		if (s->vgpus)
			FAIL(IN_USE)
		s->mixed = mode->mode == NVML_FEATURE_ENABLED;
		save_shares();
	} DONE;
}

/* a list of places in the caller's array */
static nvmlReturn_t list_places(const char *text, unsigned int size, nvmlVgpuPlacementList_t *out)
{
	unsigned int count = 0;
	char copy[512];

	if (out->version == nvmlVgpuPlacementList_v2 ? out->mode != NVML_VGPU_PGPU_HETEROGENEOUS_MODE : out->version != nvmlVgpuPlacementList_v1)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	if (text[0] == '-' && text[1]) { /* a driver that has gone wrong: -1 by its word, -2 without one */
		out->count = 4000000000u + (unsigned int)atoi(text);
		return text[1] == '1' ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
	}
	strcpy(copy, text);
	if (strcmp(text, "-"))
		for (char *s = strtok(copy, ","); s; s = strtok(NULL, ",")) {
			if (count < out->count && out->placementIds)
				out->placementIds[count] = (unsigned int)atoi(s);
			count++;
		}
	nvmlReturn_t ret = count > out->count ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
	out->count = count;
	out->placementSize = size;
	return ret;
}

static struct place *place_of(struct share *s, nvmlVgpuTypeId_t id)
{
	for (struct place *p = s->places; p < s->places + s->nplaces; p++)
		if (p->id == id)
			return p;
	return NULL;
}

nvmlReturn_t nvmlDeviceGetVgpuTypeSupportedPlacements(nvmlDevice_t device, nvmlVgpuTypeId_t id, nvmlVgpuPlacementList_t *out)
{
	CALL {
		SHARE(device)
		struct place *p = place_of(s, id);
		if (!p)
			FAIL(INVALID_ARGUMENT)
		ret = list_places(p->starts, p->size, out);
	} DONE;
}

nvmlReturn_t nvmlDeviceGetVgpuTypeCreatablePlacements(nvmlDevice_t device, nvmlVgpuTypeId_t id, nvmlVgpuPlacementList_t *out)
{
	CALL {
		SHARE(device)
		struct place *p = place_of(s, id);
		if (!p)
			FAIL(INVALID_ARGUMENT)
		if (g->current || !s->mixed)
			FAIL(NOT_SUPPORTED)
		ret = list_places(p->creatable, p->size, out);
	} DONE;
}
