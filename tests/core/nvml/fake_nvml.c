/* A libnvidia-ml.so.1 for tests: four GPUs, up to eight MIG devices on each, every answer set from the test.
 *
 * gcc -shared -fPIC -o libnvidia-ml.so.1 fake_nvml.c
 * It has no soname: loaded into a test's process, it is not taken for the driver's by whoever asks after it.
 *
 * Clocks, power, ECC, links and counters are refused on a MIG device and MIG attributes on a whole GPU, as the real
 * library does. What the test did not set is not supported. Structs are laid out as nvidia-ml-py has them.
 * With -DOLD_DRIVER it lacks what drivers before 535 lack, with -DBARE all but identity. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, FORBIDDEN = 4, NOT_FOUND = 6, SMALL = 7 };
enum { WRONG_VERSION = 25 };
enum { GPUS = 4, SLICES = 8, FIELDS = 128 };

struct field { char name[32]; long long value; };
struct device { int gpu, slice; char name[96]; struct field fields[FIELDS]; int used; };
static struct device whole[GPUS], slices[GPUS][SLICES];
static int sessions, broken, samples, calls;

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
int fake_samples(void) { return samples; }
int fake_calls(void) { return calls; }
void fake_set(int gpu, int slice, const char *field, long long value) {
  struct device *d = pick(gpu, slice);
  for (int i = 0; i < d->used; i++)
    if (!strcmp(d->fields[i].name, field)) { d->fields[i].value = value; return; }
  if (d->used == FIELDS) return;
  snprintf(d->fields[d->used].name, 32, "%s", field);
  d->fields[d->used++].value = value;
}
void fake_reset(void) {
  sessions = broken = samples = calls = 0;
  memset(whole, 0, sizeof whole), memset(slices, 0, sizeof slices), number();
}

static long long known(struct device *d, const char *field) {
  for (int i = 0; i < d->used; i++)
    if (!strcmp(d->fields[i].name, field)) return d->fields[i].value;
  return -NOT_SUPPORTED;
}
/* Every call passes here once. */
static int ready(void) { calls++; return broken ? broken : sessions ? SUCCESS : UNINITIALIZED; }
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
      if (strcmp(own, uuid) || !d->name[0]) continue;
      if (known(d, "forbidden") > 0) return FORBIDDEN;
      *out = d;
      return SUCCESS;
    }
  return rc ? rc : NOT_FOUND;
}
int nvmlDeviceGetName(struct device *d, char *out, unsigned size) {
  int rc = ready();
  if (!rc) snprintf(out, size, "%s", d->name);
  return rc;
}
int nvmlDeviceGetCount_v2(unsigned *out) {
  int rc = ready();
  *out = 0;
  for (int g = 0; !rc && g < GPUS; g++) *out += whole[g].name[0] != 0;
  return rc;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **out) {
  int rc = ready();
  for (int g = 0; !rc && g < GPUS; g++)
    if (whole[g].name[0] && !index--) {
      if (known(&whole[g], "forbidden") > 0) return FORBIDDEN;
      *out = &whole[g];
      return SUCCESS;
    }
  return rc ? rc : INVALID;
}
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
static unsigned bus_of(int gpu) { return 0x10u + (unsigned)gpu; }
int nvmlDeviceGetPciInfo_v3(struct device *d, struct pci *out) {
  long long id, subsystem;
  int rc = number_of(d, "pci", &id);
  if (rc) return rc;
  subsystem = known(d, "subsystem");
  memset(out, 0, sizeof *out), out->id = (unsigned)id, out->subsystem = (unsigned)subsystem;
  out->bus = bus_of(d->gpu);
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
/* Per cent of the last period in which a kernel ran. */
struct utilization { unsigned gpu, memory; };
int nvmlDeviceGetUtilizationRates(struct device *d, struct utilization *out) {
  long long value; WHOLE(d);
  int rc = number_of(d, "utilization", &value);
  if (!rc) out->gpu = (unsigned)value, out->memory = 0;
  return rc;
}
/* Pending is what is now, unless it is set to something else. */
#define PAIR(function, field, later) \
  int function(struct device *d, unsigned *now, unsigned *pending) { \
    long long value, next = known(d, later); \
    WHOLE(d); \
    int rc = number_of(d, field, &value); \
    if (!rc) *now = (unsigned)value, *pending = (unsigned)(next < 0 ? value : next); \
    return rc; \
  }

/* The first GPU's "branch" is everyone's driver. */
int nvmlSystemGetDriverVersion(char *out, unsigned size) {
  int rc = ready();
  long long branch = known(&whole[0], "branch");
  if (!rc) snprintf(out, size, "%d.105.08", branch < 0 ? 580 : (int)branch);
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
NUMBER(nvmlDeviceGetMemoryBusWidth, unsigned, "bus_bits")
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, unsigned, "pages_pending")
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, "generation")
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, "max_generation")
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, unsigned, "lanes")
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, unsigned, "max_lanes")
NUMBER(nvmlDeviceGetTotalEnergyConsumption, u64, "energy")
PAIR(nvmlDeviceGetEccMode, "ecc", "ecc_pending")
PAIR(nvmlDeviceGetMigMode, "mig", "mig_pending")
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
/* Application clocks: of graphics (0) only. */
int nvmlDeviceGetApplicationsClock(struct device *d, int kind, unsigned *out) {
  return clock_of(d, kind == 0 ? 1 : 0, "application", "", out);
}
int nvmlDeviceGetDefaultApplicationsClock(struct device *d, int kind, unsigned *out) {
  return clock_of(d, kind == 0 ? 1 : 0, "default_application", "", out);
}
struct memory { u64 total, free, used; };
int nvmlDeviceGetMemoryInfo(struct device *d, struct memory *out) {
  long long total, used;
  int rc = number_of(d, "memory_total", &total);
  used = known(d, "memory_used");
  if (!rc) *out = (struct memory){(u64)total, (u64)(total - used), (u64)used};
  return rc;
}
/* "errors0" corrected and "errors1" uncorrected, since the driver was loaded; the other counter is of a lifetime. */
int nvmlDeviceGetTotalEccErrors(struct device *d, int kind, int lifetime, u64 *out) {
  char name[32];
  long long value; WHOLE(d);
  snprintf(name, 32, "errors%d", kind);
  int rc = number_of(d, name, &value);
  if (!rc) *out = (u64)value + (lifetime ? 1000 : 0);
  return rc;
}
int nvmlDeviceGetRemappedRows(struct device *d, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed) {
  long long value; WHOLE(d);
  int rc = number_of(d, "rows_corrected", &value);
  if (rc) return rc;
  *corrected = (unsigned)value, *uncorrected = (unsigned)known(d, "rows_uncorrected");
  *pending = known(d, "rows_pending") > 0, *failed = known(d, "rows_failed") > 0;
  return SUCCESS;
}

/* "heldN": nanoseconds that policy N held, at "held_at" microseconds. */
int nvmlDeviceGetViolationStatus(struct device *d, int policy, u64 *out) {
  char name[32];
  long long value; WHOLE(d);
  snprintf(name, 32, "held%d", policy);
  int rc = number_of(d, name, &value);
  if (!rc) out[0] = (u64)known(d, "held_at"), out[1] = (u64)value;
  return rc;
}
/* "fiN", or "fiN_SCOPE"; NVLink speeds are unsigned ints, all else is unsigned long long, as NVML has them. */
struct value { uint32_t id, scope; int64_t at, latency; int type, rc; union { unsigned ui; u64 ull; } is; };
int nvmlDeviceGetFieldValues(struct device *d, int count, struct value *out) {
  char name[32];
  WHOLE(d);
  int rc = ready();
  for (int i = 0; !rc && i < count; i++) {
    snprintf(name, 32, out[i].scope ? "fi%u_%u" : "fi%u", out[i].id, out[i].scope);
    long long value = known(d, name);
    out[i].rc = value < 0 ? (int)-value : SUCCESS;
    out[i].at = known(d, "held_at");
    out[i].type = out[i].id == 164 || out[i].id == 90 ? 1 : 3;
    /* What a wrong member would read. */
    out[i].is.ull = 0xAAAAAAAAAAAAAAAAull;
    if (out[i].type == 1) out[i].is.ui = (unsigned)value; else out[i].is.ull = (u64)value;
  }
  return rc;
}

/* "links" of them exist, those in the mask "down" are not active, and all lead to the GPU "peer", or with 255 to a
 * switch, unless "peerLINK" says otherwise. */
static int link_of(struct device *d, unsigned link) {
  long long count;
  WHOLE(d);
  int rc = number_of(d, "links", &count);
  return rc ? rc : link >= count ? INVALID : SUCCESS;
}
static int peer_of(struct device *d, unsigned link) {
  char name[32];
  snprintf(name, 32, "peer%u", link);
  long long peer = known(d, name);
  return (int)(peer < 0 ? known(d, "peer") : peer);
}
int nvmlDeviceGetNvLinkState(struct device *d, unsigned link, unsigned *out) {
  int rc = link_of(d, link);
  long long down = known(d, "down");
  if (!rc) *out = down < 0 || !(down >> link & 1);
  return rc;
}
int nvmlDeviceGetNvLinkVersion(struct device *d, unsigned link, unsigned *out) {
  int rc = link_of(d, link);
  if (!rc) *out = (unsigned)known(d, "link_version");
  return rc;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(struct device *d, unsigned link, unsigned *out) {
  int rc = link_of(d, link);
  if (!rc) *out = peer_of(d, link) == 255 ? 2 : 0;
  return rc;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(struct device *d, unsigned link, struct pci *out) {
  int rc = link_of(d, link);
  if (!rc) memset(out, 0, sizeof *out), out->bus = bus_of(peer_of(d, link));
  return rc;
}
/* "ancestorB" and "p2pB_WHAT" of GPU A. */
int nvmlDeviceGetTopologyCommonAncestor(struct device *a, struct device *b, unsigned *out) {
  char name[32];
  long long value; WHOLE(a); WHOLE(b);
  snprintf(name, 32, "ancestor%d", b->gpu);
  int rc = number_of(a, name, &value);
  if (!rc) *out = (unsigned)value;
  return rc;
}
int nvmlDeviceGetP2PStatus(struct device *a, struct device *b, int what, unsigned *out) {
  char name[32];
  long long value; WHOLE(a); WHOLE(b);
  snprintf(name, 32, "p2p%d_%d", b->gpu, what);
  int rc = number_of(a, name, &value);
  if (!rc) *out = (unsigned)value;
  return rc;
}

/* "users": so many, user I with "userI_pid", "userI_sm", "userI_memory" and "userI_at". */
struct use { unsigned pid; u64 at; unsigned sm, memory, encoder, decoder; };
static long long of_user(struct device *d, int user, const char *what) {
  char name[32];
  snprintf(name, 32, "user%d_%s", user, what);
  return known(d, name);
}
int nvmlDeviceGetProcessUtilization(struct device *d, struct use *out, unsigned *count, u64 since) {
  long long users; WHOLE(d);
  (void)since;
  int rc = number_of(d, "users", &users);
  if (rc) return rc;
  if (!users) return NOT_FOUND;
  unsigned room = *count;
  *count = (unsigned)users;
  if (!out || room < users) return SMALL;
  for (int i = 0; i < users; i++)
    out[i] = (struct use){(unsigned)of_user(d, i, "pid"), (u64)of_user(d, i, "at"), (unsigned)of_user(d, i, "sm"),
                          (unsigned)of_user(d, i, "memory"), 0, 0};
  return SUCCESS;
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
  if (rc) return rc;
  gpu_slices = known(d, "gpu_slices"), compute_slices = known(d, "compute_slices"), mib = known(d, "mib");
  memset(out, 0, sizeof *out);
  out->sm = (unsigned)sm, out->gpu_slices = (unsigned)gpu_slices, out->compute_slices = (unsigned)compute_slices;
  out->mib = (unsigned long long)mib;
  return SUCCESS;
}
int nvmlDeviceGetGpuInstanceId(struct device *d, unsigned *out) {
  long long value;
  if (d->slice < 0) return NOT_SUPPORTED;
  int rc = number_of(d, "instance", &value);
  if (!rc) *out = (unsigned)value;
  return rc;
}

/* GPM: a sample keeps the device's "cycles" and the cycles "busyN" in which each metric N was busy. */
enum { METRICS = 16 };
struct sample { long long cycles, busy[METRICS]; };
struct metric { unsigned id; int rc; double value; const char *name, *long_name, *unit; };
struct request { unsigned version, count; struct sample *first, *second; struct metric metrics[]; };
struct support { unsigned version, supported; };
int nvmlGpmQueryDeviceSupport(struct device *d, struct support *out) {
  long long value; WHOLE(d);
  if (out->version != 1) return WRONG_VERSION;
  int rc = number_of(d, "gpm", &value);
  if (!rc) out->supported = (unsigned)value;
  return rc;
}
int nvmlGpmSampleAlloc(struct sample **out) {
  int rc = ready();
  if (!rc) *out = calloc(1, sizeof **out), samples++;
  return rc;
}
int nvmlGpmSampleFree(struct sample *s) { samples--, free(s); return SUCCESS; }
static int sample_of(struct device *d, struct sample *out) {
  char name[32];
  int rc = number_of(d, "cycles", &out->cycles);
  for (int i = 0; !rc && i < METRICS; i++) snprintf(name, 32, "busy%d", i), out->busy[i] = known(d, name);
  return rc;
}
int nvmlGpmSampleGet(struct device *d, struct sample *out) { WHOLE(d); return sample_of(d, out); }
int nvmlGpmMigSampleGet(struct device *d, unsigned instance, struct sample *out) {
  WHOLE(d);
  for (int s = 0; s < SLICES; s++)
    if (known(&slices[d->gpu][s], "instance") == instance) return sample_of(&slices[d->gpu][s], out);
  return INVALID;
}
int nvmlGpmMetricsGet(struct request *request) {
  int rc = ready();
  if (!rc && request->version != 1) rc = WRONG_VERSION;
  for (unsigned i = 0; !rc && i < request->count; i++) {
    struct metric *m = &request->metrics[i];
    long long before = m->id < METRICS ? request->first->busy[m->id] : -1;
    m->rc = before < 0 ? NOT_SUPPORTED : SUCCESS;
    if (!m->rc)
      m->value = 100.0 * (double)(request->second->busy[m->id] - before)
                 / (double)(request->second->cycles - request->first->cycles);
  }
  return rc;
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
