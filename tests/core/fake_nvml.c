/* A libnvidia-ml.so.1 for tests: two GPUs, up to eight MIG devices on each, every answer set from the test.
 *
 * gcc -shared -fPIC -o libnvidia-ml.so.1 fake_nvml.c
 * It has no soname: loaded into a test's process, it is not taken for the driver's by whoever asks after it.
 *
 * Clocks, power and ECC are refused on a MIG device and MIG attributes on a whole GPU, as the real library does.
 * With -DOLD_DRIVER it lacks what drivers before 535 lack, with -DBARE all but identity. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, SMALL = 7 };
enum { GPUS = 2, SLICES = 8, FIELDS = 64 };

struct field { char name[32]; long long value; };
struct device { int gpu, slice; char name[96]; struct field fields[FIELDS]; int used; };
static struct device whole[GPUS], slices[GPUS][SLICES];
static int sessions, broken;

static struct device *pick(int gpu, int slice) { return slice < 0 ? &whole[gpu] : &slices[gpu][slice]; }

__attribute__((constructor)) static void number(void) {
  for (int g = 0; g < GPUS; g++) {
    whole[g].gpu = g, whole[g].slice = -1;
    for (int s = 0; s < SLICES; s++) slices[g][s].gpu = g, slices[g][s].slice = s;
  }
}

/* What the test says. A negative value is the error code that the question gets. */
void fake_name(int gpu, int slice, const char *name) { snprintf(pick(gpu, slice)->name, 96, "%s", name); }
void fake_broken(int code) { broken = code; }
int fake_sessions(void) { return sessions; }
void fake_set(int gpu, int slice, const char *field, long long value) {
  struct device *d = pick(gpu, slice);
  for (int i = 0; i < d->used; i++)
    if (!strcmp(d->fields[i].name, field)) { d->fields[i].value = value; return; }
  if (d->used == FIELDS) return;
  snprintf(d->fields[d->used].name, 32, "%s", field);
  d->fields[d->used++].value = value;
}
void fake_reset(void) {
  sessions = broken = 0;
  memset(whole, 0, sizeof whole), memset(slices, 0, sizeof slices), number();
}

static long long known(struct device *d, const char *field) {
  for (int i = 0; i < d->used; i++)
    if (!strcmp(d->fields[i].name, field)) return d->fields[i].value;
  return -NOT_SUPPORTED;
}
static int ready(void) { return broken ? broken : sessions ? SUCCESS : UNINITIALIZED; }
static int number_of(struct device *d, const char *field, long long *out) {
  int rc = ready();
  long long value = rc ? 0 : known(d, field);
  if (!rc && value < 0) return (int)-value;
  *out = value;
  return rc;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; if (broken) return broken; sessions++; return SUCCESS; }
int nvmlShutdown(void) { if (!sessions) return UNINITIALIZED; sessions--; return broken; }
const char *nvmlErrorString(int code) { static char text[32]; snprintf(text, 32, "code %d", code); return text; }

int nvmlDeviceGetUUID(struct device *d, char *out, unsigned size) {
  int rc = ready();
  if (!rc) snprintf(out, size, "%s-000%d%d", d->slice < 0 ? "GPU" : "MIG", d->gpu, d->slice < 0 ? 9 : d->slice);
  return rc;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **out) {
  int rc = ready();
  char own[32];
  for (int g = 0; !rc && g < GPUS; g++)
    for (int s = -1; s < SLICES; s++) {
      struct device *d = pick(g, s);
      nvmlDeviceGetUUID(d, own, 32);
      if (!strcmp(own, uuid) && d->name[0]) { *out = d; return SUCCESS; }
    }
  return rc ? rc : NOT_FOUND;
}
int nvmlDeviceGetName(struct device *d, char *out, unsigned size) {
  int rc = ready();
  if (!rc) snprintf(out, size, "%s", d->name);
  return rc;
}
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
int nvmlDeviceGetPciInfo_v3(struct device *d, struct pci *out) {
  long long id, subsystem;
  int rc = number_of(d, "pci", &id);
  if (rc || (rc = number_of(d, "subsystem", &subsystem))) return rc;
  memset(out, 0, sizeof *out), out->id = (unsigned)id, out->subsystem = (unsigned)subsystem;
  return SUCCESS;
}

#ifndef BARE
#define WHOLE(d) if ((d)->slice >= 0) return NOT_SUPPORTED
#define NUMBER(function, type, field) \
  int function(struct device *d, type *out) { \
    long long value; \
    WHOLE(d); \
    int rc = number_of(d, field, &value); \
    if (!rc) *out = (type)value; \
    return rc; \
  }
#define PAIR(function, field) \
  int function(struct device *d, unsigned *now, unsigned *pending) { \
    long long value; \
    WHOLE(d); \
    int rc = number_of(d, field, &value); \
    if (!rc) *now = *pending = (unsigned)value; \
    return rc; \
  }

int nvmlSystemGetDriverVersion(char *out, unsigned size) {
  int rc = ready();
  if (!rc) snprintf(out, size, "580.105.08");
  return rc;
}
int nvmlDeviceGetVbiosVersion(struct device *d, char *out, unsigned size) {
  WHOLE(d);
  int rc = ready();
  if (!rc) snprintf(out, size, "96.00.74.00.01");
  return rc;
}
NUMBER(nvmlDeviceGetBrand, unsigned, "brand")
NUMBER(nvmlDeviceGetPowerUsage, unsigned, "power")
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned, "limit")
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, "default_limit")
NUMBER(nvmlDeviceGetMaxMigDeviceCount, unsigned, "mig_most")
PAIR(nvmlDeviceGetEccMode, "ecc")
PAIR(nvmlDeviceGetMigMode, "mig")
#ifdef OLD_DRIVER
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, "events")
#else
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, "events")
#endif

int nvmlDeviceGetTemperature(struct device *d, int sensor, unsigned *out) {
  long long value; WHOLE(d);
  int rc = sensor ? INVALID : number_of(d, "temperature", &value);
  if (!rc) *out = (unsigned)value;
  return rc;
}
static int clock_of(struct device *d, int kind, const char *sm, const char *memory, unsigned *out) {
  long long value; WHOLE(d);
  int rc = kind == 1 ? number_of(d, sm, &value) : kind == 2 ? number_of(d, memory, &value) : INVALID;
  if (!rc) *out = (unsigned)value;
  return rc;
}
int nvmlDeviceGetClockInfo(struct device *d, int kind, unsigned *out) { return clock_of(d, kind, "sm", "memory", out); }
int nvmlDeviceGetMaxClockInfo(struct device *d, int kind, unsigned *out) {
  return clock_of(d, kind, "max_sm", "max_memory", out);
}
int nvmlDeviceGetCudaComputeCapability(struct device *d, int *major, int *minor) {
  long long value;
  int rc = number_of(&whole[d->gpu], "capability", &value);
  if (!rc) *major = (int)value / 10, *minor = (int)value % 10;
  return rc;
}

int nvmlDeviceIsMigDeviceHandle(struct device *d, unsigned *out) { int rc = ready(); *out = d->slice >= 0; return rc; }
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(struct device *d, struct device **out) {
  int rc = ready();
  if (!rc && d->slice < 0) rc = INVALID;
  if (!rc) *out = &whole[d->gpu];
  return rc;
}
int nvmlDeviceGetMigDeviceHandleByIndex(struct device *d, unsigned index, struct device **out) {
  int rc = ready();
  if (!rc && (index >= SLICES || !slices[d->gpu][index].name[0])) rc = NOT_FOUND;
  if (!rc) *out = &slices[d->gpu][index];
  return rc;
}
struct attributes { unsigned sm, copy, decode, encode, jpeg, ofa, gpu_slices, compute_slices; unsigned long long mib; };
int nvmlDeviceGetAttributes_v2(struct device *d, struct attributes *out) {
  long long sm, gpu_slices, compute_slices, mib;
  if (d->slice < 0) return NOT_SUPPORTED;
  int rc = number_of(d, "sm_count", &sm);
  if (rc || (rc = number_of(d, "gpu_slices", &gpu_slices)) || (rc = number_of(d, "compute_slices", &compute_slices))
      || (rc = number_of(d, "mib", &mib))) return rc;
  memset(out, 0, sizeof *out);
  out->sm = (unsigned)sm, out->gpu_slices = (unsigned)gpu_slices, out->compute_slices = (unsigned)compute_slices;
  out->mib = (unsigned long long)mib;
  return SUCCESS;
}
struct process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };
int nvmlDeviceGetComputeRunningProcesses_v3(struct device *d, unsigned *count, struct process *out) {
  long long running;
  int rc = number_of(d, "processes", &running);
  if (rc) return rc;
  unsigned room = *count;
  *count = (unsigned)running;
  if (running && (!out || room < running)) return SMALL;
  for (int i = 0; i < running; i++) out[i] = (struct process){4007u - (unsigned)i, 1 << 20, 0, 0};
  return SUCCESS;
}
#endif
