/* Copyright: Slipway contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A stand-in for libcuda.so.1: the driver calls of Slipway's CUDA check, without a GPU.
 *
 * GPU memory is memory of the process. The kernels are known by their names and computed on the
 * CPU; PTX text is not compiled. Every device name starts with "stand-in".
 *
 * SLIPWAY_STAND_IN_GPUS    number of GPUs; without it, one for each device file /dev/nvidiaN that
 *                          opens, with the PCI addresses of the NVIDIA GPUs in sysfs
 * SLIPWAY_STAND_IN_FAULTS  faults, separated by commas:
 *     init=CODE       cuInit returns CODE
 *     compile=CODE    cuModuleLoadDataEx returns CODE
 *     launch=CODE     cuLaunchKernel returns CODE on GPU 0, and every later call of that GPU too
 *     missing=N       the last N GPUs are missing
 *     sum=GPU         the vector sum of this GPU is wrong in one word
 *     product=GPU     the matrix product of this GPU is wrong in one element
 *     load=GPU        each matrix product of this GPU but the first is wrong in one element
 *     load-error=GPU  each matrix product of this GPU but the first returns 719
 *     memory=GPU      one memory cell in a block of 8 MiB of this GPU keeps a bit at 0
 *     copy=GPU        copies from page-locked memory to this GPU change one byte
 *     free=MIB        no more memory can be allocated on a GPU; without it, 96 MiB are reported
 *                     as free, so that a check is quick
 *     peer=GPU        copies from this GPU to another one change one byte
 *     hang=CALL       the named call never returns
 *     crash=CALL      the named call ends the process by SIGSEGV
 *     mig=1           GPU 0 is a MIG slice
 */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define MAX_GPUS 64
#define FREE_MIB 96
#define MAX_MIB 1024
#define BAD_CELL 4100
#define BAD_BLOCK_SIZE ((size_t)1 << 23)

typedef struct {
    int gpu;
} Context;

typedef struct Block {
    unsigned char *start;
    size_t size;
    int gpu;
    struct Block *next;
} Block;

API const char slipway_stand_in_cuda[] = "stand-in libcuda.so.1 of Slipway's tests";

static Context contexts[MAX_GPUS];
static char addresses[MAX_GPUS][32];
static int gpus = -1;
/* As in the driver, each thread has its own current context. */
static __thread int current;
static int products[MAX_GPUS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int broken[MAX_GPUS];
static Block *blocks;
static Block *pinned;

/* Return the value of a fault, NULL where it is not wished. */
static const char *fault(const char *name) {
    static __thread char value[64];
    const char *at = getenv("SLIPWAY_STAND_IN_FAULTS");
    size_t length = strlen(name);
    while (at != NULL && *at != '\0') {
        size_t size = strcspn(at, ",");
        if (strncmp(at, name, length) == 0 && at[length] == '=' && size < sizeof value) {
            memcpy(value, at + length + 1, size - length - 1);
            value[size - length - 1] = '\0';
            return value;
        }
        at += size;
        at += *at == ',';
    }
    return NULL;
}

static int fault_number(const char *name, int otherwise) {
    const char *value = fault(name);
    return value == NULL ? otherwise : atoi(value);
}

/* Every call starts here: hang, crash, or the error of a GPU whose context broke. */
static int enter(const char *call) {
    const char *name = fault("hang");
    while (name != NULL && strcmp(name, call) == 0) pause();
    name = fault("crash");
    if (name != NULL && strcmp(name, call) == 0) raise(SIGSEGV);
    return gpus > 0 ? broken[current] : 0;
}

static int read_word(const char *folder, const char *entry, const char *name, char *text, int size) {
    char path[512];
    int length;
    snprintf(path, sizeof path, "%s/%s/%s", folder, entry, name);
    int file = open(path, O_RDONLY);
    if (file < 0) return 0;
    length = (int)read(file, text, size - 1);
    close(file);
    text[length < 0 ? 0 : length] = '\0';
    return length > 0;
}

static int is_gpu(const char *folder, const char *entry) {
    char vendor[16], kind[16], path[512], driver[512];
    if (!read_word(folder, entry, "vendor", vendor, sizeof vendor)) return 0;
    if (!read_word(folder, entry, "class", kind, sizeof kind)) return 0;
    snprintf(path, sizeof path, "%s/%s/physfn", folder, entry);
    if (access(path, F_OK) == 0) return 0;
    snprintf(path, sizeof path, "%s/%s/driver", folder, entry);
    ssize_t length = readlink(path, driver, sizeof driver - 1);
    driver[length < 0 ? 0 : length] = '\0';
    return strncmp(vendor, "0x10de", 6) == 0 && strstr(driver, "vfio-pci") == NULL &&
           (strncmp(kind, "0x030000", 8) == 0 || strncmp(kind, "0x030200", 8) == 0);
}

/* Count the GPUs and name their addresses; made-up addresses where sysfs has none. */
static void find_gpus(void) {
    const char *wished = getenv("SLIPWAY_STAND_IN_GPUS");
    const char *folder = "/sys/bus/pci/devices";
    struct dirent **entries = NULL;
    int count, listed = 0;
    char path[32];
    gpus = 0;
    if (wished != NULL) gpus = atoi(wished);
    while (wished == NULL && gpus < MAX_GPUS) {
        snprintf(path, sizeof path, "/dev/nvidia%d", gpus);
        int file = open(path, O_RDWR);
        if (file < 0) break;
        close(file);
        gpus++;
    }
    count = wished == NULL ? scandir(folder, &entries, NULL, alphasort) : 0;
    for (int i = 0; i < count; i++) {
        if (listed < MAX_GPUS && is_gpu(folder, entries[i]->d_name))
            snprintf(addresses[listed++], sizeof addresses[0], "%.31s", entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    for (; listed < MAX_GPUS; listed++)
        snprintf(addresses[listed], sizeof addresses[0], "0000:%02x:00.0", listed + 1);
    gpus -= fault_number("missing", 0);
    for (int i = 0; i < MAX_GPUS; i++) contexts[i].gpu = i;
}

API int cuInit(unsigned flags) {
    (void)flags;
    int code = enter("cuInit");
    if (code == 0) code = fault_number("init", 0);
    if (code != 0) return code;
    find_gpus();
    return gpus > 0 ? 0 : 100;
}

API int cuDriverGetVersion(int *version) {
    *version = 13000;
    return enter("cuDriverGetVersion");
}

API int cuDeviceGetCount(int *count) {
    *count = gpus;
    return enter("cuDeviceGetCount");
}

API int cuDeviceGet(int *device, int number) {
    *device = number;
    return number < gpus ? 0 : 101;
}

API int cuDeviceGetName(char *name, int size, int device) {
    const char *slice = device == 0 && fault("mig") != NULL ? " MIG 1g.10gb" : "";
    snprintf(name, size, "stand-in GPU %d%s", device, slice);
    return 0;
}

API int cuDeviceGetPCIBusId(char *text, int size, int device) {
    snprintf(text, size, "%s", addresses[device]);
    return 0;
}

API int cuDeviceTotalMem_v2(size_t *size, int device) {
    (void)device;
    *size = (size_t)1 << 30;
    return 0;
}

API int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 9 : 0;
    return 0;
}

API int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = &contexts[device];
    current = device;
    return enter("cuDevicePrimaryCtxRetain");
}

API int cuDevicePrimaryCtxRelease(int device) {
    (void)device;
    return 0;
}

API int cuCtxSetCurrent(void *context) {
    current = ((Context *)context)->gpu;
    return enter("cuCtxSetCurrent");
}

API int cuCtxSynchronize(void) {
    return enter("cuCtxSynchronize");
}

API int cuCtxEnablePeerAccess(void *context, unsigned flags) {
    (void)context;
    (void)flags;
    return enter("cuCtxEnablePeerAccess");
}

API int cuDeviceCanAccessPeer(int *able, int device, int other) {
    *able = device != other;
    return 0;
}

API int cuMemGetInfo_v2(size_t *available, size_t *total) {
    *available = (size_t)fault_number("free", FREE_MIB) << 20;
    *total = (size_t)1 << 30;
    return enter("cuMemGetInfo_v2");
}

static int keep(Block **list, void *start, size_t size) {
    Block *block = malloc(sizeof *block);
    if (block == NULL || start == NULL) return 2;
    pthread_mutex_lock(&lock);
    *block = (Block){start, size, current, *list};
    *list = block;
    pthread_mutex_unlock(&lock);
    return 0;
}

static int drop(Block **list, void *start) {
    Block *block;
    pthread_mutex_lock(&lock);
    while (*list != NULL && (*list)->start != start) list = &(*list)->next;
    block = *list;
    if (block != NULL) *list = block->next;
    pthread_mutex_unlock(&lock);
    if (block == NULL) return 1;
    free(block->start);
    free(block);
    return 0;
}

/* Return the bytes of a GPU that the process has allocated. */
static size_t taken(int gpu) {
    size_t bytes = 0;
    pthread_mutex_lock(&lock);
    for (Block *block = blocks; block != NULL; block = block->next)
        if (block->gpu == gpu) bytes += block->size;
    pthread_mutex_unlock(&lock);
    return bytes;
}

/* Copy the block with a byte to FOUND; return whether there is one. */
static int find(Block *const *list, const void *at, Block *found) {
    const unsigned char *byte = at;
    Block *block;
    pthread_mutex_lock(&lock);
    block = *list;
    while (block != NULL && !(byte >= block->start && byte < block->start + block->size))
        block = block->next;
    if (block != NULL) *found = *block;
    pthread_mutex_unlock(&lock);
    return block != NULL;
}

API int cuMemAlloc_v2(uint64_t *pointer, size_t size) {
    int code = enter("cuMemAlloc_v2");
    size_t free_bytes = (size_t)fault_number("free", MAX_MIB) << 20;
    if (code == 0 && taken(current) + size > free_bytes) return 2;
    void *start = malloc(size);
    *pointer = (uint64_t)(uintptr_t)start;
    return code != 0 ? code : keep(&blocks, start, size);
}

API int cuMemFree_v2(uint64_t pointer) {
    return drop(&blocks, (void *)(uintptr_t)pointer);
}

API int cuMemAllocHost_v2(void **pointer, size_t size) {
    *pointer = malloc(size);
    return keep(&pinned, *pointer, size);
}

API int cuMemFreeHost(void *pointer) {
    return drop(&pinned, pointer);
}

/* After a write: the bad cell of a large block loses its lowest bit. */
static void wear(uint64_t pointer) {
    Block block;
    if (find(&blocks, (void *)(uintptr_t)pointer, &block) &&
        block.gpu == fault_number("memory", -1) && block.size == BAD_BLOCK_SIZE)
        block.start[BAD_CELL] &= 0xFE;
}

API int cuMemsetD32_v2(uint64_t pointer, unsigned pattern, size_t words) {
    uint32_t *to = (uint32_t *)(uintptr_t)pointer;
    for (size_t i = 0; i < words; i++) to[i] = pattern;
    wear(pointer);
    return enter("cuMemsetD32_v2");
}

API int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) {
    Block block;
    memcpy((void *)(uintptr_t)to, from, size);
    if (current == fault_number("copy", -1) && find(&pinned, from, &block))
        ((unsigned char *)(uintptr_t)to)[9] ^= 1;
    return enter("cuMemcpyHtoD_v2");
}

API int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) {
    memcpy(to, (void *)(uintptr_t)from, size);
    return enter("cuMemcpyDtoH_v2");
}

API int cuMemcpyPeer(uint64_t to, void *to_context, uint64_t from, void *context, size_t size) {
    (void)to_context;
    memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, size);
    if (((Context *)context)->gpu == fault_number("peer", -1))
        ((unsigned char *)(uintptr_t)to)[9] ^= 1;
    return enter("cuMemcpyPeer");
}

/* A module is its text, a function is its name. */
API int cuModuleLoadDataEx(void **module, const void *text, unsigned count, int *options,
                           void **values) {
    int code = enter("cuModuleLoadDataEx");
    if (code == 0) code = fault_number("compile", 0);
    for (unsigned i = 0; code != 0 && i < count; i++)
        if (options[i] == 5) strcpy(values[i], "stand-in: the text is not compiled");
    *module = strdup(text);
    return code;
}

API int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = strdup(name);
    return strstr(module, name) != NULL ? 0 : 500;
}

static void fill_addresses(void **parameters) {
    uint64_t pointer = *(uint64_t *)parameters[0];
    uint32_t words = *(uint32_t *)parameters[1], *to = (uint32_t *)(uintptr_t)pointer;
    for (uint32_t i = 0; i < words; i++)
        to[i] = ((i & 0x3FFFF) * 0x9E3779B1u) ^ ((i >> 18) * 0x85EBCA77u);
    wear(pointer);
}

static void vector_sum(void **parameters) {
    uint32_t *left = *(uint32_t **)parameters[0], *right = *(uint32_t **)parameters[1];
    uint32_t *to = *(uint32_t **)parameters[2], words = *(uint32_t *)parameters[3];
    for (uint32_t i = 0; i < words; i++) to[i] = left[i] + right[i];
    if (current == fault_number("sum", -1)) to[words / 2] ^= 4;
}

static void matrix_product(void **parameters) {
    float *left = *(float **)parameters[0], *right = *(float **)parameters[1];
    float *to = *(float **)parameters[2];
    uint32_t order = *(uint32_t *)parameters[3];
    for (uint32_t row = 0; row < order; row++)
        for (uint32_t column = 0; column < order; column++) {
            float sum = 0;
            for (uint32_t k = 0; k < order; k++)
                sum += left[row * order + k] * right[k * order + column];
            to[row * order + column] = sum;
        }
    if (current == fault_number("product", -1)) to[order] += 1;
    if (current == fault_number("load", -1) && products[current] > 1) to[order] += 1;
}

API int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads_x,
                       unsigned threads_y, unsigned threads_z, unsigned shared, void *stream,
                       void **parameters, void **extra) {
    (void)x, (void)y, (void)z, (void)threads_x, (void)threads_y, (void)threads_z;
    (void)shared, (void)stream, (void)extra;
    int code = enter("cuLaunchKernel");
    if (current == 0 && code == 0) code = broken[0] = fault_number("launch", 0);
    if (code != 0) return code;
    if (strcmp(function, "slipway_fill_addresses") == 0) fill_addresses(parameters);
    else if (strcmp(function, "slipway_vector_sum") == 0) vector_sum(parameters);
    else if (strcmp(function, "slipway_matrix_product") == 0) {
        if (products[current]++ && current == fault_number("load-error", -1)) return 719;
        matrix_product(parameters);
    }
    else return 500;
    return 0;
}
