//go:build ignore
/* Go is told to ignore it: nvml.c includes it. */

/*
 * How vGPUs share a GPU by time. That is kept in a file of its own, <file>.vgpu, one line
 * for each GPU whose driver is for hosts of VMs:
 *
 *   <bus> <policy> <time slice> <ARR mode> <vGPUs that exist>
 *
 * share.go writes it. A GPU that is not in it answers that it does not support any of this.
 */

#include <strings.h>

struct share {
	char bus[32];
	unsigned int policy, slice, arr, vgpus;
};

static struct share shares[8];
static int nshares;

/* what is known of a GPU, or NULL */
static struct share *share_of(const struct gpu *g)
{
	FILE *f = fopen(path(".vgpu"), "re");

	nshares = 0;
	while (f && nshares < 8) {
		struct share *s = &shares[nshares];
		if (fscanf(f, "%31s %u %u %u %u", s->bus, &s->policy, &s->slice, &s->arr, &s->vgpus) != 5)
			break;
		nshares++;
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
	for (struct share *s = shares; s < shares + nshares; s++)
		fprintf(f, "%s %u %u %u %u\n", s->bus, s->policy, s->slice, s->arr, s->vgpus);
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
