//go:build ignore
/* Go is told to ignore it: it is compiled by Build, with nvml.c. */

/*
 * What the driver tells of vGPUs that run, and of the modes of a card. It only reads: a
 * file of its own beside the state, <state>.vgpus, which vgpu.go writes. Without that file
 * there are no vGPUs, and no card has such modes.
 *
 * The rest of the library is asked as a caller would: whether there is a session, and
 * which card a handle is.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "nvml.h"

#define MOST 32

struct vgpu {
	char bus[32], vm[96], mdev[96], driver[96];
	unsigned int id, type, gi, license, expires, year, month, day, hour, min, sec;
	int kind, gone;
	unsigned long long fb;
};

struct sample { char bus[32]; unsigned int vgpu, sm, mem, enc, dec; unsigned long long at; };
struct modes { char bus[32]; int ecc, pending, compute; };

static struct {
	int nvgpus, nsamples, nmodes;
	struct vgpu vgpus[MOST];
	struct sample samples[MOST];
	struct modes modes[MOST];
} seen;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void read_file(void)
{
	char name[4096], word[16];
	const char *state = getenv("GPUVIRT_NVML_STATE");
	FILE *f;
	bool ok = true;

	memset(&seen, 0, sizeof seen);
	snprintf(name, sizeof name, "%s.vgpus", state ? state : "");
	f = fopen(name, "re");
	if (!f)
		return;
	while (ok && fscanf(f, "%15s", word) == 1) {
		if (!strcmp(word, "vgpu")) {
			struct vgpu *v = &seen.vgpus[seen.nvgpus++];
			ok = fscanf(f, "%31s %u %d %95s %95s %u %u %llu %u %u %u %u %u %u %u %u %d %95[^\n]", v->bus, &v->id, &v->kind, v->vm,
				    v->mdev, &v->type, &v->gi, &v->fb, &v->license, &v->expires, &v->year, &v->month, &v->day, &v->hour,
				    &v->min, &v->sec, &v->gone, v->driver) == 18;
		} else if (!strcmp(word, "sample")) {
			struct sample *s = &seen.samples[seen.nsamples++];
			ok = fscanf(f, "%31s %u %llu %u %u %u %u", s->bus, &s->vgpu, &s->at, &s->sm, &s->mem, &s->enc, &s->dec) == 7;
		} else if (!strcmp(word, "modes")) {
			struct modes *m = &seen.modes[seen.nmodes++];
			ok = fscanf(f, "%31s %d %d %d", m->bus, &m->ecc, &m->pending, &m->compute) == 4;
		} else {
			ok = false;
		}
	}
	fclose(f);
	if (!ok)
		abort();
}

/* which card a handle is, with the file read and the lock held; else no lock */
static nvmlReturn_t card(nvmlDevice_t device, nvmlPciInfo_t *info)
{
	nvmlReturn_t ret = nvmlDeviceGetPciInfo_v3(device, info);

	if (ret == NVML_SUCCESS) {
		pthread_mutex_lock(&mutex);
		read_file();
	}
	return ret;
}

/* a vGPU by its number, with the lock held on success */
static nvmlReturn_t find(nvmlVgpuInstance_t id, struct vgpu **v)
{
	char version[96];
	nvmlReturn_t ret = nvmlSystemGetDriverVersion(version, sizeof version);

	if (ret != NVML_SUCCESS)
		return ret;
	if (!id)
		return NVML_ERROR_INVALID_ARGUMENT;
	pthread_mutex_lock(&mutex);
	read_file();
	for (*v = seen.vgpus; *v < seen.vgpus + seen.nvgpus; ++*v)
		if ((*v)->id == id && !(*v)->gone)
			return NVML_SUCCESS;
	pthread_mutex_unlock(&mutex);
	return NVML_ERROR_NOT_FOUND;
}

static nvmlReturn_t done(nvmlReturn_t ret)
{
	pthread_mutex_unlock(&mutex);
	return ret;
}

static nvmlReturn_t copy(char *to, unsigned int size, const char *text)
{
	if (strlen(text) >= size)
		return done(NVML_ERROR_INSUFFICIENT_SIZE);
	strcpy(to, text);
	return done(NVML_SUCCESS);
}

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, nvmlEnableState_t *current, nvmlEnableState_t *pending)
{
	nvmlPciInfo_t at;
	nvmlReturn_t ret = card(device, &at);

	if (ret != NVML_SUCCESS)
		return ret;
	for (struct modes *m = seen.modes; m < seen.modes + seen.nmodes; m++)
		if (!strcasecmp(m->bus, at.busId) && m->ecc >= 0) {
			*current = m->ecc;
			*pending = m->pending;
			return done(NVML_SUCCESS);
		}
	return done(NVML_ERROR_NOT_SUPPORTED);
}

nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t *mode)
{
	nvmlPciInfo_t at;
	nvmlReturn_t ret = card(device, &at);

	if (ret != NVML_SUCCESS)
		return ret;
	for (struct modes *m = seen.modes; m < seen.modes + seen.nmodes; m++)
		if (!strcasecmp(m->bus, at.busId)) {
			*mode = m->compute;
			return done(NVML_SUCCESS);
		}
	return done(NVML_ERROR_NOT_SUPPORTED);
}

nvmlReturn_t nvmlDeviceGetActiveVgpus(nvmlDevice_t device, unsigned int *count, nvmlVgpuInstance_t *ids)
{
	nvmlPciInfo_t at;
	nvmlReturn_t ret = card(device, &at);
	unsigned int n = 0, room;

	if (ret != NVML_SUCCESS)
		return ret;
	room = *count;
	for (struct vgpu *v = seen.vgpus; v < seen.vgpus + seen.nvgpus; v++)
		if (!strcasecmp(v->bus, at.busId) && n++ < room)
			ids[n - 1] = v->id;
	*count = n;
	return done(n > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS);
}

nvmlReturn_t nvmlDeviceGetVgpuUtilization(nvmlDevice_t device, unsigned long long last, nvmlValueType_t *type, unsigned int *count,
					  nvmlVgpuInstanceUtilizationSample_t *out)
{
	nvmlPciInfo_t at;
	nvmlReturn_t ret = card(device, &at);
	unsigned int n = 0, room;

	if (ret != NVML_SUCCESS)
		return ret;
	room = *count;
	*type = NVML_VALUE_TYPE_UNSIGNED_INT;
	for (struct sample *s = seen.samples; s < seen.samples + seen.nsamples; s++) {
		if (strcasecmp(s->bus, at.busId) || s->at <= last || n++ >= room)
			continue;
		memset(&out[n - 1], 0xaa, sizeof *out); /* who reads another member of the union sees no number */
		out[n - 1].vgpuInstance = s->vgpu;
		out[n - 1].timeStamp = s->at;
		out[n - 1].smUtil.uiVal = s->sm;
		out[n - 1].memUtil.uiVal = s->mem;
		out[n - 1].encUtil.uiVal = s->enc;
		out[n - 1].decUtil.uiVal = s->dec;
	}
	*count = n;
	return done(!n ? NVML_ERROR_NOT_FOUND : n > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS);
}

nvmlReturn_t nvmlVgpuInstanceGetVmID(nvmlVgpuInstance_t id, char *vm, unsigned int size, nvmlVgpuVmIdType_t *kind)
{
	struct vgpu *v;
	nvmlReturn_t ret = find(id, &v);

	if (ret != NVML_SUCCESS)
		return ret;
	*kind = v->kind;
	return copy(vm, size, v->vm);
}

nvmlReturn_t nvmlVgpuInstanceGetMdevUUID(nvmlVgpuInstance_t id, char *uuid, unsigned int size)
{
	struct vgpu *v;
	nvmlReturn_t ret = find(id, &v);

	if (ret != NVML_SUCCESS)
		return ret;
	return strcmp(v->mdev, "-") ? copy(uuid, size, v->mdev) : done(NVML_ERROR_NOT_SUPPORTED);
}

nvmlReturn_t nvmlVgpuInstanceGetVmDriverVersion(nvmlVgpuInstance_t id, char *version, unsigned int size)
{
	struct vgpu *v;
	nvmlReturn_t ret = find(id, &v);

	return ret != NVML_SUCCESS ? ret : copy(version, size, v->driver);
}

nvmlReturn_t nvmlVgpuInstanceGetFbUsage(nvmlVgpuInstance_t id, unsigned long long *bytes)
{
	struct vgpu *v;
	nvmlReturn_t ret = find(id, &v);

	if (ret != NVML_SUCCESS)
		return ret;
	*bytes = v->fb;
	return done(NVML_SUCCESS);
}

nvmlReturn_t nvmlVgpuInstanceGetType(nvmlVgpuInstance_t id, nvmlVgpuTypeId_t *type)
{
	struct vgpu *v;
	nvmlReturn_t ret = find(id, &v);

	if (ret != NVML_SUCCESS)
		return ret;
	*type = v->type;
	return done(NVML_SUCCESS);
}

nvmlReturn_t nvmlVgpuInstanceGetGpuInstanceId(nvmlVgpuInstance_t id, unsigned int *gi)
{
	struct vgpu *v;
	nvmlReturn_t ret = find(id, &v);

	if (ret != NVML_SUCCESS)
		return ret;
	*gi = v->gi;
	return done(NVML_SUCCESS);
}

nvmlReturn_t nvmlVgpuInstanceGetLicenseInfo_v2(nvmlVgpuInstance_t id, nvmlVgpuLicenseInfo_t *info)
{
	struct vgpu *v;
	nvmlReturn_t ret = find(id, &v);

	if (ret != NVML_SUCCESS)
		return ret;
	if (!strcmp(v->driver, "Not Available"))
		return done(NVML_ERROR_DRIVER_NOT_LOADED);
	memset(info, 0, sizeof *info);
	info->isLicensed = v->license == NVML_GRID_LICENSE_STATE_LICENSED;
	info->currentState = v->license;
	info->licenseExpiry = (nvmlVgpuLicenseExpiry_t){
		.year = v->year, .month = v->month, .day = v->day, .hour = v->hour, .min = v->min, .sec = v->sec, .status = v->expires};
	return done(NVML_SUCCESS);
}
