// NCCL without a GPU: each call is counted; a collective leaves its result as this rank's own part.
#include <cstdlib>
#include <cstring>

extern "C" {
void null_count(const char *);
#define CALL(name) int name() { null_count("nccl " #name); return 0; }
#define NOTHING(name) int name() { return 0; }
CALL(ncclBcast) CALL(ncclBroadcast) CALL(ncclReduceScatter) CALL(ncclReduce) CALL(ncclSend) CALL(ncclRecv) CALL(ncclAlltoAll)
CALL(ncclGather) CALL(ncclCommAbort) CALL(ncclCommDestroy) CALL(ncclCommFinalize)
NOTHING(ncclCommDeregister) NOTHING(ncclCommRegister) NOTHING(ncclCommRevoke) NOTHING(ncclGroupStart) NOTHING(ncclGroupEnd)
NOTHING(ncclCommWindowRegister) NOTHING(ncclRedOpDestroy) NOTHING(ncclCommMemStats)

static size_t bytes(int type) {
  const int sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
  return sizes[type];
}
int ncclAllReduce(const void *from, void *to, size_t n, int type, int, void *, void *) {
  null_count("nccl ncclAllReduce");
  memmove(to, from, n * bytes(type));
  return 0;
}
int ncclAllGather(const void *from, void *to, size_t n, int type, void *communicator, void *) {
  null_count("nccl ncclAllGather");
  for (int rank = 0; rank < *(int *)communicator; rank++) memmove((char *)to + rank * n * bytes(type), from, n * bytes(type));
  return 0;
}
int ncclRedOpCreatePreMulSum(int *operation) { *operation = 5; return 0; }
int ncclGetVersion(int *version) { *version = 23007; return 0; }
const char *ncclGetErrorString(int) { return "null"; }
const char *ncclGetLastError(void *) { return ""; }
int ncclGetUniqueId(void *id) { memset(id, 7, 128); return 0; }
// A communicator holds its number of ranks and this one's rank.
struct UniqueId { char bytes[128]; };
int ncclCommInitRankConfig(void **communicator, int ranks, UniqueId, int rank, void *) {
  null_count("nccl ncclCommInitRankConfig");
  int *made = (int *)calloc(2, sizeof(int));
  made[0] = ranks;
  made[1] = rank;
  *communicator = made;
  return 0;
}
int ncclCommInitRank(void **communicator, int ranks, UniqueId id, int rank) { return ncclCommInitRankConfig(communicator, ranks, id, rank, nullptr); }
int ncclCommGetAsyncError(void *, int *error) { *error = 0; return 0; }
int ncclCommCount(void *communicator, int *ranks) { *ranks = ((int *)communicator)[0]; return 0; }
int ncclCommUserRank(void *communicator, int *rank) { *rank = ((int *)communicator)[1]; return 0; }
}
