// Shared memory of other blocks, used too early, too late or unordered.
#include "cuda_host/zoo/zoo.h"

namespace chattn::zoo {
namespace {

CHATTN_KERNEL(kThreads) remote_before_start(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  // FAULT remote_before_start: which may not have started: no cluster barrier before
  s.at_rank(cluster_rank() ^ 1).st(t, 1.f);
  cluster_sync();
  st(out + global_thread(), s.ld(t));
}
ZOO(remote_before_start, nullptr, .grid = 2, .block = kThreads, .shared_bytes = 1024, .cluster = 2);

CHATTN_KERNEL(kThreads) remote_after_exit(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  s.st(t, 1.f);
  cluster_sync();
  if (cluster_rank() == 0) {
    st(out + t, 1.f);
    return;
  }
  // FAULT remote_after_exit: access to the shared memory of block rank 0, which has exited
  st(out + global_thread(), s.at_rank(0).ld(t));
}
ZOO(remote_after_exit, nullptr, .grid = 2, .block = kThreads, .shared_bytes = 1024, .cluster = 2);

// The order of threads hides it: rank 0 happens to read before rank 1 leaves.
CHATTN_KERNEL(kThreads) exit_after_remote_read(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  s.st(t, 1.f);
  cluster_sync();
  float v = 1;
  // FAULT exit_after_remote_read: a block exits with no cluster barrier after another one's access
  if (cluster_rank() == 0) v = s.at_rank(1).ld(t);
  st(out + global_thread(), v);
}
ZOO(exit_after_remote_read, nullptr, .grid = 2, .block = kThreads, .shared_bytes = 1024,
    .cluster = 2);

CHATTN_KERNEL(kThreads) remote_rank_too_large(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  s.st(t, 1.f);
  cluster_sync();
  // FAULT remote_rank_too_large: rank 2 in a cluster of 2
  const Shared<float> other = s.at_rank(cluster_rank() + 1);
  st(out + global_thread(), other.ld(t));
  cluster_sync_relaxed();
}
ZOO(remote_rank_too_large, nullptr, .grid = 2, .block = kThreads, .shared_bytes = 1024,
    .cluster = 2);

// RACE marks what the race check finds; without it, such a kernel may even compute the right thing.
CHATTN_KERNEL(kThreads) block_barrier_for_cluster(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  s.st(t, 1.f);
  cluster_sync();
  s.st(t, 2.f);
  __syncthreads();
  // RACE block_barrier_for_cluster: race on 'shared memory'
  st(out + global_thread(), s.at_rank(cluster_rank() ^ 1).ld(t));
  cluster_sync();
}
ZOO(block_barrier_for_cluster, nullptr, .grid = 2, .block = kThreads, .shared_bytes = 1024,
    .cluster = 2);

CHATTN_KERNEL(kThreads) relaxed_barrier_publishes(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  s.st(t, 1.f);
  cluster_sync_relaxed();
  // RACE relaxed_barrier_publishes: race on 'shared memory' at byte
  st(out + global_thread(), s.at_rank(cluster_rank() ^ 1).ld(t));
  cluster_sync();
}
ZOO(relaxed_barrier_publishes, nullptr, .grid = 2, .block = kThreads, .shared_bytes = 1024,
    .cluster = 2);

}  // namespace
}  // namespace chattn::zoo
