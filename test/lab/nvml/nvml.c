//go:build ignore
/* Go is told to ignore it: it is compiled by Build, into a library of its own. */

/*
 * A libnvidia-ml.so.1 without a GPU behind it: the functions that gpuvirt calls, with
 * the rules that hardware has, over a state that lies in a file. It is loaded as the
 * driver's own library is, so that what stands between that and our code is tried.
 *
 * The file is named by GPUVIRT_NVML_STATE; state.go writes it and says what is in it.
 * Without it the driver is not loaded. Every call reads the file anew under a lock, so
 * that several processes see one host. Calls that change something, and the beginning
 * and end of sessions, are appended to <file>.calls with what they answered.
 *
 * A handle names what it was given for, and the number of resets of its GPU at that
 * time: after a reset, or after what it names has gone, it is refused.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "nvml.h"

#define ALL 64 /* more than any host here has of anything */

struct profile {
	int index, id, size, max, compute, decoders, encoders, jpeg, ofa, mib, nstarts, starts[16];
	char name[64];
};

struct gi { int id, profile, start, size; };
struct ci { int gi, id, slices, start; char uuid[96]; };
struct client { int pid, gi; };

struct gpu {
	char bus[32], uuid[96], serial[32], name[96];
	int minor, mib, capable, resets, current, pending, generation;
	int slices, compute, decoders, encoders, jpeg, ofa;
	int nprofiles, ngis, ncis, nclients;
	struct profile profiles[ALL];
	struct gi gis[ALL];
	struct ci cis[ALL];
	struct client clients[ALL];
};

struct fault { char call[96]; int ret, times; };

static struct {
	char driver[64];
	int admin, made, ngpus, nfaults;
	struct gpu gpus[8];
	struct fault faults[ALL];
} state;

/* ---- handles */

struct handle { char kind; int gpu, generation, gi, ci; struct handle *next; };

static struct handle *handles;
static int sessions;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int lock = -1;

static void *handle(char kind, int gpu, int gi, int ci)
{
	int generation = state.gpus[gpu].generation;

	for (struct handle *h = handles; h; h = h->next)
		if (h->kind == kind && h->gpu == gpu && h->generation == generation && h->gi == gi && h->ci == ci)
			return h;
	struct handle *h = malloc(sizeof *h);
	*h = (struct handle){kind, gpu, generation, gi, ci, handles};
	return handles = h;
}

/* what a handle is for, or NULL */
static struct gpu *gpu_of(const void *p, char kind)
{
	const struct handle *h = p;

	if (!h || h->kind != kind || h->gpu >= state.ngpus || state.gpus[h->gpu].generation != h->generation)
		return NULL;
	return &state.gpus[h->gpu];
}

static struct gi *find_gi(struct gpu *g, int id)
{
	for (int i = 0; i < g->ngis; i++)
		if (g->gis[i].id == id)
			return &g->gis[i];
	return NULL;
}

static struct ci *find_ci(struct gpu *g, int gi, int id)
{
	for (int i = 0; i < g->ncis; i++)
		if (g->cis[i].gi == gi && g->cis[i].id == id)
			return &g->cis[i];
	return NULL;
}

static struct profile *by_id(struct gpu *g, unsigned int id)
{
	for (int i = 0; i < g->nprofiles; i++)
		if (g->profiles[i].id == (int)id)
			return &g->profiles[i];
	return NULL;
}

static struct profile *by_index(struct gpu *g, unsigned int index)
{
	for (int i = 0; i < g->nprofiles; i++)
		if (g->profiles[i].index == (int)index)
			return &g->profiles[i];
	return NULL;
}

/* ---- the file */

static const char *path(const char *suffix)
{
	static char buf[4096];
	const char *name = getenv("GPUVIRT_NVML_STATE");

	if (!name || !*name)
		return NULL;
	snprintf(buf, sizeof buf, "%s%s", name, suffix);
	return buf;
}

static bool load(void)
{
	const char *name = path("");
	FILE *f = name ? fopen(name, "re") : NULL;
	char word[16], starts[256];
	bool ok = true;

	if (!f)
		return false;
	memset(&state, 0, sizeof state);
	while (ok && fscanf(f, "%15s", word) == 1) {
		struct gpu *g = &state.gpus[state.ngpus ? state.ngpus - 1 : 0];

		if (!strcmp(word, "driver")) {
			ok = fscanf(f, "%63s", state.driver) == 1;
		} else if (!strcmp(word, "made")) {
			ok = fscanf(f, "%d", &state.made) == 1;
		} else if (!strcmp(word, "admin")) {
			ok = fscanf(f, "%d", &state.admin) == 1;
		} else if (!strcmp(word, "fail")) {
			struct fault *x = &state.faults[state.nfaults++];
			ok = fscanf(f, "%95s %d %d", x->call, &x->ret, &x->times) == 3;
		} else if (!strcmp(word, "gpu")) {
			g = &state.gpus[state.ngpus++];
			ok = fscanf(f, "%31s %d %95s %31s %d %d %d %d %d %d %95[^\n]", g->bus, &g->minor, g->uuid, g->serial, &g->mib,
				    &g->capable, &g->resets, &g->current, &g->pending, &g->generation, g->name) == 11;
		} else if (!strcmp(word, "total")) {
			ok = fscanf(f, "%d %d %d %d %d %d", &g->slices, &g->compute, &g->decoders, &g->encoders, &g->jpeg, &g->ofa) == 6;
		} else if (!strcmp(word, "profile")) {
			struct profile *p = &g->profiles[g->nprofiles++];
			ok = fscanf(f, "%63s %d %d %d %d %d %d %d %d %d %d %255s", p->name, &p->index, &p->id, &p->size, &p->max, &p->compute,
				    &p->decoders, &p->encoders, &p->jpeg, &p->ofa, &p->mib, starts) == 12;
			for (char *s = strtok(starts, ","); ok && s; s = strtok(NULL, ","))
				p->starts[p->nstarts++] = atoi(s);
		} else if (!strcmp(word, "gi")) {
			struct gi *x = &g->gis[g->ngis++];
			ok = fscanf(f, "%d %d %d %d", &x->id, &x->profile, &x->start, &x->size) == 4;
		} else if (!strcmp(word, "ci")) {
			struct ci *x = &g->cis[g->ncis++];
			ok = fscanf(f, "%d %d %d %d %95s", &x->gi, &x->id, &x->slices, &x->start, x->uuid) == 5;
		} else if (!strcmp(word, "client")) {
			struct client *x = &g->clients[g->nclients++];
			ok = fscanf(f, "%d %d", &x->pid, &x->gi) == 2;
		} else {
			ok = false;
		}
	}
	fclose(f);
	return ok;
}

static void save(void)
{
	char to[4096];
	FILE *f;

	snprintf(to, sizeof to, "%s", path(""));
	f = fopen(path(".new"), "we");
	if (!f)
		abort();
	fprintf(f, "driver %s\nmade %d\nadmin %d\n", state.driver, state.made, state.admin);
	for (int i = 0; i < state.nfaults; i++)
		if (state.faults[i].times)
			fprintf(f, "fail %s %d %d\n", state.faults[i].call, state.faults[i].ret, state.faults[i].times);
	for (struct gpu *g = state.gpus; g < state.gpus + state.ngpus; g++) {
		fprintf(f, "gpu %s %d %s %s %d %d %d %d %d %d %s\n", g->bus, g->minor, g->uuid, g->serial, g->mib, g->capable, g->resets,
			g->current, g->pending, g->generation, g->name);
		fprintf(f, "total %d %d %d %d %d %d\n", g->slices, g->compute, g->decoders, g->encoders, g->jpeg, g->ofa);
		for (struct profile *p = g->profiles; p < g->profiles + g->nprofiles; p++) {
			fprintf(f, "profile %s %d %d %d %d %d %d %d %d %d %d ", p->name, p->index, p->id, p->size, p->max, p->compute,
				p->decoders, p->encoders, p->jpeg, p->ofa, p->mib);
			for (int i = 0; i < p->nstarts; i++)
				fprintf(f, "%s%d", i ? "," : "", p->starts[i]);
			fputc('\n', f);
		}
		for (int i = 0; i < g->ngis; i++)
			fprintf(f, "gi %d %d %d %d\n", g->gis[i].id, g->gis[i].profile, g->gis[i].start, g->gis[i].size);
		for (int i = 0; i < g->ncis; i++)
			fprintf(f, "ci %d %d %d %d %s\n", g->cis[i].gi, g->cis[i].id, g->cis[i].slices, g->cis[i].start, g->cis[i].uuid);
		for (int i = 0; i < g->nclients; i++)
			fprintf(f, "client %d %d\n", g->clients[i].pid, g->clients[i].gi);
	}
	if (fclose(f) || rename(path(".new"), to))
		abort();
}

static void record(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void record(const char *format, ...)
{
	va_list args;
	FILE *f = path(".calls") ? fopen(path(".calls"), "ae") : NULL;

	if (!f)
		return;
	va_start(args, format);
	vfprintf(f, format, args);
	va_end(args);
	fputc('\n', f);
	fclose(f);
}

static void unlock_all(void)
{
	if (lock >= 0)
		close(lock);
	lock = -1;
	pthread_mutex_unlock(&mutex);
}

/* the error that a call is to fail with, or success */
static nvmlReturn_t fault(const char *call)
{
	for (int i = 0; i < state.nfaults; i++) {
		struct fault *x = &state.faults[i];
		if (!strcmp(x->call, call) && x->times) {
			x->times -= x->times > 0;
			save();
			return x->ret;
		}
	}
	return NVML_SUCCESS;
}

/* takes the lock and reads the file; what it answers is the call's answer if no success */
static nvmlReturn_t begin(const char *call)
{
	pthread_mutex_lock(&mutex);
	if (path(".lock"))
		lock = open(path(".lock"), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	if (lock >= 0)
		flock(lock, LOCK_EX);
	if (!load())
		return NVML_ERROR_DRIVER_NOT_LOADED;
	if (!sessions && strcmp(call, "nvmlInit_v2"))
		return NVML_ERROR_UNINITIALIZED;
	return fault(call);
}

/* the kernel's side asks for CAP_SYS_ADMIN of whoever changes something */
static bool permitted(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	return !state.admin || (!syscall(SYS_capget, &header, data) && data[0].effective & 1u << CAP_SYS_ADMIN);
}

/* every function is one block between these; "ret" is its answer */
#define CALL nvmlReturn_t ret = begin(__func__); if (ret == NVML_SUCCESS) do
#define DONE while (0); unlock_all(); return ret
#define FAIL(code) { ret = NVML_ERROR_##code; break; }
#define ADMIN if (!permitted()) FAIL(NO_PERMISSION)

/* ---- the host */

nvmlReturn_t nvmlInit_v2(void)
{
	CALL {
		sessions++;
		record("Init");
	} DONE;
}

nvmlReturn_t nvmlShutdown(void)
{
	CALL {
		sessions--;
		record("Shutdown");
	} DONE;
}

const char *nvmlErrorString(nvmlReturn_t result)
{
	(void)result;
	return "look-alike";
}

static nvmlReturn_t put(char *to, unsigned int length, const char *text)
{
	if (!to || strlen(text) >= length)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	strcpy(to, text);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
	CALL {
		ret = put(version, length, state.driver);
	} DONE;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
	CALL {
		*count = state.ngpus;
	} DONE;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
	CALL {
		if (index >= (unsigned int)state.ngpus)
			FAIL(INVALID_ARGUMENT);
		device->handle = handle('g', index, 0, 0);
	} DONE;
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus, nvmlDevice_t *device)
{
	CALL {
		ret = NVML_ERROR_NOT_FOUND;
		for (int i = 0; i < state.ngpus; i++)
			if (!strcasecmp(bus, state.gpus[i].bus)) {
				device->handle = handle('g', i, 0, 0);
				ret = NVML_SUCCESS;
			}
	} DONE;
}

/* ---- a GPU */

#define GPU(h) struct gpu *g = gpu_of((h).handle, 'g'); if (!g) FAIL(INVALID_ARGUMENT)

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
	CALL {
		GPU(device);
		memset(pci, 0, sizeof *pci);
		sscanf(g->bus, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
		strcpy(pci->busId, g->bus);
	} DONE;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
	CALL {
		GPU(device);
		ret = put(name, length, g->name);
	} DONE;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
	CALL {
		struct handle *h = (void *)device.handle;
		struct gpu *m = gpu_of(h, 'm');
		if (m) { /* a device that a program sees */
			struct ci *x = find_ci(m, h->gi, h->ci);
			if (!x)
				FAIL(NOT_FOUND);
			ret = put(uuid, length, x->uuid);
			break;
		}
		GPU(device);
		ret = put(uuid, length, g->uuid);
	} DONE;
}

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length)
{
	CALL {
		GPU(device);
		if (!strcmp(g->serial, "-"))
			FAIL(NOT_SUPPORTED);
		ret = put(serial, length, g->serial);
	} DONE;
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor)
{
	CALL {
		GPU(device);
		*minor = g->minor;
	} DONE;
}

/* cards before Hopper are those that are reset for their mode */
nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, nvmlDeviceArchitecture_t *arch)
{
	CALL {
		GPU(device);
		*arch = g->resets ? NVML_DEVICE_ARCH_AMPERE : g->capable ? NVML_DEVICE_ARCH_HOPPER : NVML_DEVICE_ARCH_TURING;
	} DONE;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
	CALL {
		GPU(device);
		memory->total = memory->free = (unsigned long long)g->mib << 20;
		memory->used = 0;
	} DONE;
}

static nvmlReturn_t processes(struct gpu *g, unsigned int *count, nvmlProcessInfo_t *infos, int n)
{
	unsigned int room = *count;

	*count = n;
	if (!n)
		return NVML_SUCCESS;
	if (!infos || room < (unsigned int)n)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	for (int i = 0; i < n; i++)
		infos[i] = (nvmlProcessInfo_t){
			.pid = g->clients[i].pid, .usedGpuMemory = 1 << 20,
			.gpuInstanceId = g->clients[i].gi, .computeInstanceId = g->clients[i].gi < 0 ? ~0u : 0,
		};
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos)
{
	CALL {
		GPU(device);
		ret = processes(g, count, infos, g->nclients);
	} DONE;
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos)
{
	CALL {
		GPU(device);
		ret = processes(g, count, infos, 0);
	} DONE;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
	CALL {
		GPU(device);
		if (!g->capable)
			FAIL(NOT_SUPPORTED);
		*current = g->current;
		*pending = g->pending;
	} DONE;
}

nvmlReturn_t nvmlDeviceSetMigMode(nvmlDevice_t device, unsigned int mode, nvmlReturn_t *activation)
{
	CALL {
		GPU(device);
		ADMIN;
		if (!g->capable)
			FAIL(NOT_SUPPORTED);
		if (mode > 1)
			FAIL(INVALID_ARGUMENT);
		g->pending = mode;
		*activation = NVML_SUCCESS;
		if (g->current != g->pending) {
			if (g->ngis || g->nclients)
				*activation = NVML_ERROR_IN_USE;
			else
				*activation = fault("activation");
			if (*activation == NVML_SUCCESS) {
				g->current = mode;
				if (g->resets)
					g->generation++; /* unbound and bound again: handles are void */
			}
		}
		record("SetMigMode %s %u -> %d", g->bus, mode, *activation);
		save();
	} DONE;
}

/* ---- GPU instances */

static int used(struct gpu *g, int profile)
{
	int n = 0;

	for (int i = 0; i < g->ngis; i++)
		n += g->gis[i].profile == profile;
	return n;
}

/* whether the engines suffice for n more, and the number of a profile allows them */
static bool allows(struct gpu *g, struct profile *p, int n)
{
	int compute = n * p->compute, decoders = n * p->decoders, encoders = n * p->encoders, jpeg = n * p->jpeg, ofa = n * p->ofa;

	for (int i = 0; i < g->ngis; i++) {
		struct profile *q = by_id(g, g->gis[i].profile);
		compute += q->compute;
		decoders += q->decoders;
		encoders += q->encoders;
		jpeg += q->jpeg;
		ofa += q->ofa;
	}
	return used(g, p->id) + n <= p->max && compute <= g->compute && decoders <= g->decoders && encoders <= g->encoders && jpeg <= g->jpeg &&
	       ofa <= g->ofa;
}

static bool is_free(struct gpu *g, int start, int size)
{
	for (int i = 0; i < g->ngis; i++)
		if (g->gis[i].start < start + size && start < g->gis[i].start + g->gis[i].size)
			return false;
	return true;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfo(nvmlDevice_t device, unsigned int index, nvmlGpuInstanceProfileInfo_t *info)
{
	CALL {
		GPU(device);
		struct profile *p = by_index(g, index);
		if (!p)
			FAIL(NOT_SUPPORTED);
		*info = (nvmlGpuInstanceProfileInfo_t){
			.id = p->id, .sliceCount = p->compute, .instanceCount = p->max, .multiprocessorCount = p->compute * 14,
			.copyEngineCount = p->compute, .decoderCount = p->decoders, .encoderCount = p->encoders, .jpegCount = p->jpeg,
			.ofaCount = p->ofa, .memorySizeMB = p->mib,
		};
	} DONE;
}

/* knows the second form of the description, as drivers of some years ago do */
nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t device, unsigned int index, nvmlGpuInstanceProfileInfo_v2_t *info)
{
	CALL {
		GPU(device);
		struct profile *p = by_index(g, index);
		if (info->version != nvmlGpuInstanceProfileInfo_v2)
			FAIL(ARGUMENT_VERSION_MISMATCH);
		if (!p)
			FAIL(NOT_SUPPORTED);
		info->id = p->id;
		info->sliceCount = p->compute;
		info->instanceCount = p->max;
		info->memorySizeMB = p->mib;
		snprintf(info->name, sizeof info->name, "MIG %s", p->name);
	} DONE;
}

nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements_v2(nvmlDevice_t device, unsigned int id, nvmlGpuInstancePlacement_t *placements,
							    unsigned int *count)
{
	CALL {
		GPU(device);
		struct profile *p = by_id(g, id);
		if (!p)
			FAIL(NOT_SUPPORTED);
		for (int i = 0; placements && i < p->nstarts && (unsigned int)i < *count; i++)
			placements[i] = (nvmlGpuInstancePlacement_t){p->starts[i], p->size};
		*count = p->nstarts;
	} DONE;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceRemainingCapacity(nvmlDevice_t device, unsigned int id, unsigned int *count)
{
	CALL {
		GPU(device);
		struct profile *p = by_id(g, id);
		if (!p || !g->current)
			FAIL(NOT_SUPPORTED);
		/* starts that do not overlap one another, from the left */
		int n = 0, end = -1;
		for (int i = 0; i < p->nstarts; i++)
			if (p->starts[i] >= end && is_free(g, p->starts[i], p->size)) {
				n++;
				end = p->starts[i] + p->size;
			}
		while (n && !allows(g, p, n))
			n--;
		*count = n;
	} DONE;
}

nvmlReturn_t nvmlDeviceCreateGpuInstanceWithPlacement(nvmlDevice_t device, unsigned int id, const nvmlGpuInstancePlacement_t *at,
						       nvmlGpuInstance_t *instance)
{
	CALL {
		GPU(device);
		ADMIN;
		struct profile *p = by_id(g, id);
		bool legal = false;
		int unused = 1;
		if (!g->current)
			FAIL(NOT_SUPPORTED);
		for (int i = 0; p && i < p->nstarts; i++)
			legal |= p->starts[i] == (int)at->start && p->size == (int)at->size;
		if (!legal)
			FAIL(INVALID_ARGUMENT);
		if (!allows(g, p, 1) || !is_free(g, at->start, at->size))
			ret = NVML_ERROR_INSUFFICIENT_RESOURCES;
		while (find_gi(g, unused))
			unused++;
		if (ret == NVML_SUCCESS) {
			g->gis[g->ngis++] = (struct gi){unused, id, at->start, at->size};
			save();
			instance->handle = handle('i', g - state.gpus, unused, 0);
		}
		record("CreateGpuInstance %s %s %u -> %d", g->bus, p->name, at->start, ret);
	} DONE;
}

nvmlReturn_t nvmlDeviceGetGpuInstances(nvmlDevice_t device, unsigned int id, nvmlGpuInstance_t *instances, unsigned int *count)
{
	CALL {
		GPU(device);
		unsigned int n = 0;
		if (!by_id(g, id) || !g->current)
			FAIL(NOT_SUPPORTED);
		for (int i = 0; i < g->ngis; i++)
			if (g->gis[i].profile == (int)id)
				instances[n++].handle = handle('i', g - state.gpus, g->gis[i].id, 0);
		*count = n;
	} DONE;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvmlDevice_t device, unsigned int id, nvmlGpuInstance_t *instance)
{
	CALL {
		GPU(device);
		if (!find_gi(g, id))
			FAIL(NOT_FOUND);
		instance->handle = handle('i', g - state.gpus, id, 0);
	} DONE;
}

#define GI(x)                                                                                                                                                  \
	struct handle *h = (void *)(x).handle;                                                                                                                 \
	struct gpu *g = gpu_of(h, 'i');                                                                                                                        \
	struct gi *gi = g ? find_gi(g, h->gi) : NULL;                                                                                                          \
	if (!gi)                                                                                                                                               \
		FAIL(INVALID_ARGUMENT)

nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t instance, nvmlGpuInstanceInfo_t *info)
{
	CALL {
		GI(instance);
		*info = (nvmlGpuInstanceInfo_t){
			.device = {handle('g', h->gpu, 0, 0)}, .id = gi->id, .profileId = gi->profile, .placement = {gi->start, gi->size},
		};
	} DONE;
}

static bool busy(struct gpu *g, int gi)
{
	for (int i = 0; i < g->nclients; i++)
		if (g->clients[i].gi == gi)
			return true;
	return false;
}

nvmlReturn_t nvmlGpuInstanceDestroy(nvmlGpuInstance_t instance)
{
	CALL {
		GI(instance);
		ADMIN;
		int id = gi->id;
		if (busy(g, id))
			ret = NVML_ERROR_IN_USE;
		for (int i = 0; i < g->ncis; i++)
			if (g->cis[i].gi == id)
				ret = NVML_ERROR_IN_USE;
		if (ret == NVML_SUCCESS) {
			memmove(gi, gi + 1, (char *)(g->gis + g->ngis) - (char *)(gi + 1));
			g->ngis--;
			save();
		}
		record("DestroyGpuInstance %s %d -> %d", g->bus, id, ret);
	} DONE;
}

/* ---- compute instances */

static const int slices_of[] = {1, 2, 3, 4, 7, 8, 6}; /* by index, which is the id here */

static int total(struct gpu *g, struct gi *gi) { return by_id(g, gi->profile)->compute; }

static int step(int slices) { return slices == 3 ? 4 : slices; }

static int places(int all, int slices)
{
	int n = 0;

	for (int at = 0; at + slices <= all; at += step(slices))
		n++;
	return n;
}

static bool has(struct gpu *g, struct gi *gi, unsigned int index)
{
	return index < sizeof slices_of / sizeof *slices_of && slices_of[index] <= total(g, gi);
}

nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfo(nvmlGpuInstance_t instance, unsigned int index, unsigned int engine,
							   nvmlComputeInstanceProfileInfo_t *info)
{
	CALL {
		GI(instance);
		if (!has(g, gi, index) || engine)
			FAIL(NOT_SUPPORTED);
		*info = (nvmlComputeInstanceProfileInfo_t){
			.id = index, .sliceCount = slices_of[index], .instanceCount = places(total(g, gi), slices_of[index]),
		};
	} DONE;
}

nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfoV(nvmlGpuInstance_t instance, unsigned int index, unsigned int engine,
							    nvmlComputeInstanceProfileInfo_v2_t *info)
{
	CALL {
		GI(instance);
		const char *of = by_id(g, gi->profile)->name;
		if (info->version != nvmlComputeInstanceProfileInfo_v2)
			FAIL(ARGUMENT_VERSION_MISMATCH);
		if (!has(g, gi, index) || engine)
			FAIL(NOT_SUPPORTED);
		info->id = index;
		info->sliceCount = slices_of[index];
		info->instanceCount = places(total(g, gi), slices_of[index]);
		if (slices_of[index] == total(g, gi))
			snprintf(info->name, sizeof info->name, "MIG %s", of);
		else
			snprintf(info->name, sizeof info->name, "MIG %dc.%s", slices_of[index], of);
	} DONE;
}

nvmlReturn_t nvmlGpuInstanceGetComputeInstancePossiblePlacements(nvmlGpuInstance_t instance, unsigned int id,
								  nvmlComputeInstancePlacement_t *placements, unsigned int *count)
{
	CALL {
		GI(instance);
		if (!has(g, gi, id))
			FAIL(NOT_SUPPORTED);
		unsigned int n = places(total(g, gi), slices_of[id]);
		for (unsigned int i = 0; placements && i < n && i < *count; i++)
			placements[i] = (nvmlComputeInstancePlacement_t){i * step(slices_of[id]), slices_of[id]};
		*count = n;
	} DONE;
}

nvmlReturn_t nvmlGpuInstanceCreateComputeInstanceWithPlacement(nvmlGpuInstance_t instance, unsigned int id,
								const nvmlComputeInstancePlacement_t *at, nvmlComputeInstance_t *compute)
{
	CALL {
		GI(instance);
		ADMIN;
		int n = has(g, gi, id) ? slices_of[id] : 0, unused = 0;
		if (!n || at->start % step(n) || (int)at->start + n > total(g, gi))
			FAIL(INVALID_ARGUMENT);
		for (int i = 0; i < g->ncis; i++) {
			struct ci *x = &g->cis[i];
			if (x->gi == gi->id && x->start < (int)at->start + n && (int)at->start < x->start + x->slices)
				ret = NVML_ERROR_INSUFFICIENT_RESOURCES;
		}
		while (find_ci(g, gi->id, unused))
			unused++;
		if (ret == NVML_SUCCESS) {
			struct ci *x = &g->cis[g->ncis++];
			*x = (struct ci){.gi = gi->id, .id = unused, .slices = n, .start = at->start};
			snprintf(x->uuid, sizeof x->uuid, "MIG-00000000-0000-4000-8000-%012x", ++state.made);
			save();
			compute->handle = handle('c', h->gpu, gi->id, unused);
		}
		record("CreateComputeInstance %s %d %dc %u -> %d", g->bus, gi->id, n, at->start, ret);
	} DONE;
}

nvmlReturn_t nvmlGpuInstanceGetComputeInstances(nvmlGpuInstance_t instance, unsigned int id, nvmlComputeInstance_t *compute, unsigned int *count)
{
	CALL {
		GI(instance);
		unsigned int n = 0;
		if (!has(g, gi, id))
			FAIL(NOT_SUPPORTED);
		for (int i = 0; i < g->ncis; i++)
			if (g->cis[i].gi == gi->id && g->cis[i].slices == slices_of[id])
				compute[n++].handle = handle('c', h->gpu, gi->id, g->cis[i].id);
		*count = n;
	} DONE;
}

nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(nvmlGpuInstance_t instance, unsigned int id, nvmlComputeInstance_t *compute)
{
	CALL {
		GI(instance);
		if (!find_ci(g, gi->id, id))
			FAIL(NOT_FOUND);
		compute->handle = handle('c', h->gpu, gi->id, id);
	} DONE;
}

#define CI(x)                                                                                                                                                  \
	struct handle *h = (void *)(x).handle;                                                                                                                 \
	struct gpu *g = gpu_of(h, 'c');                                                                                                                        \
	struct ci *ci = g ? find_ci(g, h->gi, h->ci) : NULL;                                                                                                   \
	if (!ci)                                                                                                                                               \
		FAIL(INVALID_ARGUMENT)

nvmlReturn_t nvmlComputeInstanceGetInfo_v2(nvmlComputeInstance_t compute, nvmlComputeInstanceInfo_t *info)
{
	CALL {
		CI(compute);
		unsigned int index = 0;
		while (slices_of[index] != ci->slices)
			index++;
		*info = (nvmlComputeInstanceInfo_t){
			.device = {handle('g', h->gpu, 0, 0)}, .gpuInstance = {handle('i', h->gpu, ci->gi, 0)}, .id = ci->id, .profileId = index,
			.placement = {ci->start, ci->slices},
		};
	} DONE;
}

nvmlReturn_t nvmlComputeInstanceDestroy(nvmlComputeInstance_t compute)
{
	CALL {
		CI(compute);
		ADMIN;
		int gi = ci->gi, id = ci->id;
		if (busy(g, gi))
			ret = NVML_ERROR_IN_USE;
		if (ret == NVML_SUCCESS) {
			memmove(ci, ci + 1, (char *)(g->cis + g->ncis) - (char *)(ci + 1));
			g->ncis--;
			save();
		}
		record("DestroyComputeInstance %s %d %d -> %d", g->bus, gi, id, ret);
	} DONE;
}

/* ---- devices that programs see: one for each compute instance, with gaps between */

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
	CALL {
		GPU(device);
		*count = g->capable ? g->compute : 0;
	} DONE;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig)
{
	CALL {
		GPU(device);
		if (index >= (unsigned int)g->compute)
			FAIL(INVALID_ARGUMENT);
		if (index >= (unsigned int)g->ncis)
			FAIL(NOT_FOUND);
		mig->handle = handle('m', (struct handle *)(void *)device.handle ? ((struct handle *)(void *)device.handle)->gpu : 0, g->cis[index].gi,
				     g->cis[index].id);
	} DONE;
}

static nvmlReturn_t instance_id(nvmlDevice_t device, unsigned int *id, bool compute)
{
	struct handle *h = (void *)device.handle;

	if (!gpu_of(h, 'm'))
		return NVML_ERROR_INVALID_ARGUMENT;
	*id = compute ? h->ci : h->gi;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id)
{
	CALL {
		ret = instance_id(device, id, false);
	} DONE;
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id)
{
	CALL {
		ret = instance_id(device, id, true);
	} DONE;
}

#include "share.c"
