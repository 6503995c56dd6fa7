// libcuda.so.1 without a GPU: the library to which torch's are linked. Nothing of it is called.
extern "C" {
#define NOTHING(name) int name() { return 0; }
NOTHING(cuCtxGetCurrent) NOTHING(cuCtxSetCurrent) NOTHING(cuDeviceGet) NOTHING(cuDeviceGetAttribute) NOTHING(cuDevicePrimaryCtxRetain)
NOTHING(cuFuncGetAttribute) NOTHING(cuFuncSetAttribute) NOTHING(cuFuncSetCacheConfig) NOTHING(cuGetErrorString)
NOTHING(cuLaunchCooperativeKernel) NOTHING(cuLaunchKernel) NOTHING(cuLinkAddData_v2) NOTHING(cuLinkComplete) NOTHING(cuLinkCreate_v2)
NOTHING(cuModuleGetFunction) NOTHING(cuModuleLoad) NOTHING(cuModuleLoadData) NOTHING(cuModuleLoadDataEx) NOTHING(cuModuleUnload)
NOTHING(cuOccupancyMaxActiveBlocksPerMultiprocessor) NOTHING(cuPointerGetAttribute) NOTHING(cuTensorMapEncodeTiled)
int cuDevicePrimaryCtxGetState(int, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
int cuInit(unsigned) { return 100; } // no device
}
