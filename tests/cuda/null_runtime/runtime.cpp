// A CUDA runtime, cuBLAS and cuDNN without a GPU, loaded before the real ones (LD_PRELOAD).
//
// "Device" memory is the host's. Kernels do nothing; copies copy; every launch, copy, wait and
// allocation between null_start and null_stop is counted by name. So the host side of torch's CUDA
// build runs as it is, with all its checks, and values that a kernel would compute are garbage.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <cuda.h>
#include <cuda_runtime_api.h>
#undef cudaGetDeviceProperties
#undef cudaStreamGetCaptureInfo

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {
bool counting = false, capturing = false;
// Never destroyed: kernels are registered before main and launched by threads after it.
std::mutex &lock = *new std::mutex;
std::map<std::string, long> &counts() { static auto *all = new std::map<std::string, long>; return *all; }
std::map<const void *, std::string> &kernels() { static auto *all = new std::map<const void *, std::string>; return *all; }
std::map<const char *, size_t> &pinned() { static auto *all = new std::map<const char *, size_t>; return *all; }

void count(const std::string &name) {
  if (!counting) return;
  std::lock_guard<std::mutex> guard(lock);
  counts()[name]++;
}
cudaError_t wait(const char *name) {
  if (capturing) return cudaErrorStreamCaptureUnsupported;
  count(std::string("wait ") + name);
  return cudaSuccess;
}
cudaError_t copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, const char *name) {
  const char *kinds[] = {"HtoH", "HtoD", "DtoH", "DtoD", "default"};
  count(std::string(name) + " " + kinds[kind]);
  memmove(to, from, bytes);
  return cudaSuccess;
}
void launch(const void *function) {
  if (!counting) return;
  auto found = kernels().find(function);
  count("launch " + (found == kernels().end() ? std::string("?") : found->second));
}
int number(const char *variable, int otherwise) {
  const char *text = getenv(variable);
  return text ? atoi(text) : otherwise;
}
} // namespace

EXPORT void null_start() { std::lock_guard<std::mutex> guard(lock); counts().clear(); counting = true; }
EXPORT void null_stop() { counting = false; }
EXPORT void null_count(const char *name) { count(name); }
// Lines of number, tab, name; the length, at most `size`.
EXPORT int null_read(char *buffer, int size) {
  std::lock_guard<std::mutex> guard(lock);
  std::string text;
  for (auto &entry : counts()) text += std::to_string(entry.second) + "\t" + entry.first + "\n";
  int length = std::min<int>(text.size(), size);
  memcpy(buffer, text.data(), length);
  return length;
}

// ---- the device: like an H100, one board for each local rank
EXPORT cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return cudaSuccess; }
EXPORT cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
EXPORT cudaError_t cudaSetDevice(int) { return cudaSuccess; }
EXPORT cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; return cudaSuccess; }
EXPORT cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; return cudaSuccess; }
EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp *facts, int) {
  memset(facts, 0, sizeof *facts);
  strcpy(facts->name, "Null GPU");
  facts->major = number("NULL_CAPABILITY", 90) / 10;
  facts->minor = number("NULL_CAPABILITY", 90) % 10;
  facts->pciBusID = number("NULL_BOARD", number("LOCAL_RANK", 0));
  facts->totalGlobalMem = 80ull << 30;
  facts->sharedMemPerBlock = 49152;
  facts->regsPerBlock = facts->regsPerMultiprocessor = 65536;
  facts->warpSize = 32;
  facts->maxThreadsPerBlock = facts->maxThreadsDim[0] = facts->maxThreadsDim[1] = 1024;
  facts->maxThreadsDim[2] = 64;
  facts->maxGridSize[0] = 2147483647;
  facts->maxGridSize[1] = facts->maxGridSize[2] = 65535;
  facts->multiProcessorCount = number("NULL_MULTIPROCESSORS", 132);
  facts->maxThreadsPerMultiProcessor = number("NULL_THREADS", 2048);
  facts->sharedMemPerMultiprocessor = 233472;
  facts->sharedMemPerBlockOptin = 232448;
  facts->l2CacheSize = 50 << 20;
  facts->textureAlignment = 512;
  facts->maxBlocksPerMultiProcessor = 32;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
  case cudaDevAttrComputeCapabilityMajor: *value = number("NULL_CAPABILITY", 90) / 10; break;
  case cudaDevAttrComputeCapabilityMinor: *value = number("NULL_CAPABILITY", 90) % 10; break;
  case cudaDevAttrMultiProcessorCount: *value = number("NULL_MULTIPROCESSORS", 132); break;
  case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
  case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
  case cudaDevAttrWarpSize: *value = 32; break;
  default: *value = 1024;
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemGetInfo(size_t *free, size_t *total) { *free = 79ull << 30; *total = 80ull << 30; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) { *can = 0; return cudaSuccess; }
EXPORT cudaError_t cudaGetLastError() { return cudaSuccess; }
EXPORT cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

// ---- memory
EXPORT cudaError_t cudaMalloc(void **pointer, size_t bytes) {
  size_t most = (size_t)number("NULL_MEGABYTES", 1 << 20) << 20;
  static size_t used = 0;
  if (used + bytes > most || posix_memalign(pointer, 512, bytes)) return cudaErrorMemoryAllocation;
  used += bytes;
  count("allocation");
  memset(*pointer, 0, bytes);
  return cudaSuccess;
}
EXPORT cudaError_t cudaFree(void *pointer) { free(pointer); return cudaSuccess; }
EXPORT cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned) {
  if (posix_memalign(pointer, 4096, bytes)) return cudaErrorMemoryAllocation;
  count("pinned allocation");
  pinned()[(const char *)*pointer] = bytes;
  return cudaSuccess;
}
EXPORT cudaError_t cudaFreeHost(void *pointer) { free(pointer); return cudaSuccess; }
EXPORT cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t) { return copy(to, from, n, kind, "copy"); }
EXPORT cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind kind) { return copy(to, from, n, kind, "wait copy"); }
EXPORT cudaError_t cudaMemsetAsync(void *to, int value, size_t n, cudaStream_t) { count("fill"); memset(to, value, n); return cudaSuccess; }
EXPORT cudaError_t cudaMemset(void *to, int value, size_t n) { count("fill"); memset(to, value, n); return cudaSuccess; }
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *facts, const void *pointer) {
  memset(facts, 0, sizeof *facts);
  facts->type = cudaMemoryTypeUnregistered;
  auto next = pinned().upper_bound((const char *)pointer);
  if (next != pinned().begin() && (--next, (const char *)pointer < next->first + next->second)) facts->type = cudaMemoryTypeHost;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetSymbolAddress(void **pointer, const void *symbol) { *pointer = (void *)symbol; return cudaSuccess; }
EXPORT cudaError_t cudaMemcpyToSymbol(const void *, const void *, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }

// ---- streams and events
EXPORT cudaError_t cudaDeviceSynchronize() { return wait("for the device"); }
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t) { return wait("for a stream"); }
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t) { return wait("for an event"); }
EXPORT cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaEventCreate(cudaEvent_t *event) { *event = (cudaEvent_t)8; return cudaSuccess; }
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) { *event = (cudaEvent_t)8; return cudaSuccess; }
EXPORT cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) { return cudaSuccess; }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
EXPORT cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) { *ms = 0; return cudaSuccess; }
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned, int) {
  static long last = 16;
  *stream = (cudaStream_t)(last += 16);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { return cudaStreamCreateWithPriority(stream, 0, 0); }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t, int *priority) { *priority = 0; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return cudaSuccess; }
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
  *status = capturing && stream ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **, const cudaGraphEdgeData **, size_t *edges) {
  if (status) cudaStreamIsCapturing(stream, status);
  if (id) *id = capturing && stream;
  if (graph) *graph = (cudaGraph_t)8;
  if (edges) *edges = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *) { return cudaSuccess; }

// ---- kernels: how nvcc's code registers and launches them
struct Configuration { dim3 grid, block; size_t shared; void *stream; };
static thread_local std::vector<Configuration> pushed;
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) { pushed.push_back({grid, block, shared, stream}); return 0; }
EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  Configuration last = pushed.back();
  pushed.pop_back();
  *grid = last.grid; *block = last.block; *shared = last.shared; *(void **)stream = last.stream;
  return cudaSuccess;
}
EXPORT void **__cudaRegisterFatBinary(void *) { static void *handle[4]; return handle; }
EXPORT void __cudaRegisterFatBinaryEnd(void **) {}
EXPORT void __cudaUnregisterFatBinary(void **) {}
EXPORT void __cudaRegisterFunction(void **, const char *host, char *, const char *name, int, uint3 *, uint3 *, dim3 *, dim3 *, int *) { kernels()[host] = name; }
EXPORT void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}
EXPORT char __cudaInitModule(void **) { return 1; }
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) { *kernel = (cudaKernel_t)function; return cudaSuccess; }
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3, void **, size_t, cudaStream_t) {
  launch((const void *)kernel);
  if (counting && kernels()[(const void *)kernel].find("distribution") != std::string::npos) count("grid of a random kernel " + std::to_string(grid.x));
  return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) { return __cudaLaunchKernel((cudaKernel_t)function, grid, block, arguments, shared, stream); }
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *, const void *function, void **) { launch(function); return cudaSuccess; }
EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *facts, const void *) {
  memset(facts, 0, sizeof *facts);
  facts->maxThreadsPerBlock = 1024;
  facts->ptxVersion = facts->binaryVersion = 90;
  facts->numRegs = 32;
  return cudaSuccess;
}
EXPORT cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) { return cudaSuccess; }
EXPORT cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) { return cudaSuccess; }
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int, size_t, unsigned) { *blocks = 8; return cudaSuccess; }

// ---- graphs
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { capturing = true; return cudaSuccess; }
EXPORT cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t, cudaGraph_t, const cudaGraphNode_t *, const cudaGraphEdgeData *, size_t, cudaStreamCaptureMode) { capturing = true; return cudaSuccess; }
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) { capturing = false; *graph = (cudaGraph_t)8; return cudaSuccess; }
EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t *graph, cudaGraph_t, unsigned long long) { *graph = (cudaGraphExec_t)8; return cudaSuccess; }
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *graph, cudaGraph_t, unsigned long long) { *graph = (cudaGraphExec_t)8; return cudaSuccess; }
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { count("launch graph"); return cudaSuccess; }
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t *, size_t *n) { *n = 1; return cudaSuccess; }
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
EXPORT cudaError_t cudaUserObjectCreate(cudaUserObject_t *object, void *, cudaHostFn_t, unsigned, unsigned) { *object = (cudaUserObject_t)8; return cudaSuccess; }
EXPORT cudaError_t cudaUserObjectRelease(cudaUserObject_t, unsigned) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphRetainUserObject(cudaGraph_t, cudaUserObject_t, unsigned, unsigned) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t, cudaGraphNode_t *, const cudaGraphEdgeData *, size_t, unsigned) { return cudaSuccess; }

// ---- the driver, as far as the runtime hands it out
static CUresult context_state(CUdevice, unsigned *flags, int *active) { *flags = 0; *active = 1; return CUDA_SUCCESS; }
static CUresult success() { return CUDA_SUCCESS; }
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult *result) {
  *function = strcmp(name, "cuDevicePrimaryCtxGetState") ? (void *)success : (void *)context_state;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// ---- cuBLAS and cuDNN: statuses are 0
#define HANDLE(name) EXPORT int name(void **handle, ...) { *handle = calloc(1, 64); return 0; }
#define NOTHING(name) EXPORT int name() { return 0; }
#define KERNEL(name) EXPORT int name() { count("launch " #name); return 0; }
HANDLE(cublasCreate_v2) HANDLE(cudnnCreate)
HANDLE(cublasLtMatmulDescCreate) HANDLE(cublasLtMatmulPreferenceCreate) HANDLE(cublasLtMatrixLayoutCreate)
NOTHING(cublasDestroy_v2) NOTHING(cublasSetStream_v2) NOTHING(cublasSetWorkspace_v2) NOTHING(cublasSetMathMode)
NOTHING(cublasSetPointerMode_v2) NOTHING(cublasSetSmCountTarget)
NOTHING(cublasLtMatmulDescDestroy) NOTHING(cublasLtMatmulDescSetAttribute) NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute) NOTHING(cublasLtMatrixLayoutDestroy) NOTHING(cublasLtMatrixLayoutSetAttribute)
NOTHING(cublasLtMatmulAlgoCheck) NOTHING(cublasLtMatmulAlgoInit) NOTHING(cublasLtMatmulAlgoConfigSetAttribute)
NOTHING(cudnnSetStream) NOTHING(cudnnDestroy)
NOTHING(cudnnBackendDestroyDescriptor) NOTHING(cudnnBackendFinalize) NOTHING(cudnnBackendSetAttribute)
KERNEL(cublasGemmEx) KERNEL(cublasGemmStridedBatchedEx) KERNEL(cublasSgemm_v2) KERNEL(cublasSgemmEx) KERNEL(cublasSgemv_v2)
KERNEL(cublasSgemmStridedBatched) KERNEL(cublasDgemm_v2) KERNEL(cublasDgemv_v2) KERNEL(cublasSdot_v2) KERNEL(cublasDotEx)
KERNEL(cublasLtMatmul) KERNEL(cudnnBackendExecute)
EXPORT int cublasGetMathMode(void *, int *mode) { *mode = 0; return 0; }
EXPORT int cublasGetPointerMode_v2(void *, int *mode) { *mode = 0; return 0; }
EXPORT size_t cublasLtGetVersion() { return 130000; }
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *, void *, int, void *result, int *n) { memset(result, 0, 96); *n = 1; return 0; }
EXPORT size_t cudnnGetVersion() { return 91500; }
EXPORT size_t cudnnGetCudartVersion() { return 13000; }
EXPORT const char *cudnnGetErrorString(int) { return "null"; }
EXPORT void cudnnGetLastErrorString(char *text, size_t size) { if (size) text[0] = 0; }
EXPORT int cudnnBackendCreateDescriptor(int type, void **descriptor) { *descriptor = calloc(1, 64); *(int *)*descriptor = type; return 0; }
EXPORT int cudnnBackendGetAttribute(void *, int, int type, long wanted, long *n, void *values) {
  const int descriptors = 15, int64 = 3;
  if (type == int64 && wanted > 0 && values) *(long long *)values = 0;
  if (n) *n = type == descriptors || type == int64;
  return 0;
}
