#include "tests/cuda_emulation/block.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>

#include "tests/cuda_emulation/cuda_runtime.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace degu::cuda {
// The one that kernels declare in kernels/cuda/launch.cuh.
alignas(1024) thread_local uint4 dynamic_shared[emulated::kMostShared / sizeof(uint4)];
}  // namespace degu::cuda

namespace emulated {

thread_local constinit dim3 threadIdx;
thread_local constinit dim3 blockIdx;
thread_local constinit dim3 blockDim;
thread_local constinit dim3 gridDim;

namespace {

// ---- Fibers: a stack each, and how to go from one to another.

#if defined(__x86_64__)
struct Place {
  void* stack = nullptr;
};
// Stores what the caller must find again on its stack, and goes on where `to` stopped.
extern "C" void emulated_switch(void** from, void* to);
asm(R"(
.text
.local emulated_switch
.type emulated_switch, @function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch, . - emulated_switch
)");
void go(Place& from, Place& to) {
  emulated_switch(&from.stack, to.stack);
}
void prepare(Place& place, std::byte* stack, size_t bytes, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;  // so that the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  place.stack = top;
}
#else
struct Place {
  ucontext_t context;
};
void go(Place& from, Place& to) {
  swapcontext(&from.context, &to.context);
}
void prepare(Place& place, std::byte* stack, size_t bytes, void (*entry)()) {
  getcontext(&place.context);
  place.context.uc_stack.ss_sp = stack;
  place.context.uc_stack.ss_size = bytes;
  place.context.uc_link = nullptr;
  makecontext(&place.context, entry, 0);
}
#endif

constexpr size_t kStackBytes = size_t{128} << 10;
constexpr size_t kPage = 4096;

// Where some threads wait for each other, again and again.
struct Meeting {
  std::array<void*, 128> item{};
  int places = 0;  // at which items may lie
  int arrived = 0;
  unsigned generation = 0;
};

// What the products of a warpgroup still have to do, and how many of them each committed group has.
struct Products {
  std::deque<std::function<void()>> waiting;
  std::deque<size_t> groups;
  size_t open = 0;
};

struct Fiber {
  Place place;
  dim3 index;
  int number = 0;  // in the block
  bool ended = false;
  const Meeting* waits_for = nullptr;  // while its generation is the one below
  unsigned generation = 0;
  // Copies asked for and not made, and how many of them each ended group has; both from a first one
  // on, so that neither gives memory back.
  std::vector<AsyncCopy> copies;
  std::vector<size_t> groups;
  size_t first_copy = 0, first_group = 0;
  size_t open = 0;  // copies of no group yet

  bool unfenced = false;  // made copies that products do not see yet

  bool ready() const {
    return !ended && (waits_for == nullptr || waits_for->generation != generation);
  }
};

struct Block {
  Block() {
    stacks =
        static_cast<std::byte*>(mmap(nullptr, kMostThreads * kStackBytes, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) {
      std::perror("emulated GPU: memory for stacks");
      std::abort();
    }
    for (int i = 0; i < kMostThreads; ++i) mprotect(stacks + i * kStackBytes, kPage, PROT_NONE);
  }
  ~Block() { munmap(stacks, kMostThreads * kStackBytes); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void start(const std::function<void()>& body, bool backwards);
  void run();
  bool run_warp(int warp);

  Place scheduler;
  std::byte* stacks;
  std::array<Fiber, kMostThreads> fibers;
  std::array<Meeting, kMostThreads / 32> warps;
  std::array<Meeting, kMostThreads / 128> warpgroups;
  std::array<Products, kMostThreads / 128> products;
  int unfenced = 0;  // fibers with such copies
  Meeting barrier;
  const std::function<void()>* thread = nullptr;
  Fiber* current = nullptr;
  int threads = 0;
  int alive = 0;
  bool trapped = false;
  bool reversed = false;
};

thread_local std::unique_ptr<Block> the_block;

Fiber& self() {
  return *the_block->current;
}

void release(Meeting& meeting, int expected, Together work) {
  if (meeting.arrived < expected) return;
  if (work != nullptr) {
    work(meeting.item.data());
    std::fill_n(meeting.item.data(), meeting.places, nullptr);
  }
  meeting.arrived = 0;
  ++meeting.generation;
}

void meet(Meeting& meeting, int place, int expected, void* mine, Together work) {
  Fiber& fiber = self();
  if (mine != nullptr) {
    meeting.item[static_cast<size_t>(place)] = mine;
    meeting.places = std::max(meeting.places, place + 1);
  }
  fiber.waits_for = &meeting;
  fiber.generation = meeting.generation;
  ++meeting.arrived;
  release(meeting, expected, work);
  if (fiber.ready()) return;
  go(fiber.place, the_block->scheduler);
}

Products& my_products() {
  return the_block->products[static_cast<size_t>(self().number / 128)];
}

void run_fiber() {
  Block& block = *the_block;
  (*block.thread)();
  wait_copy_groups(0);
  Fiber& fiber = self();
  if (fiber.open > 0) fail("ends with copies in no group");
  if (!my_products().waiting.empty()) fail("ends before its products do");
  fiber.ended = true;
  --block.alive;
  release(block.barrier, std::max(block.alive, 1), nullptr);
  go(fiber.place, block.scheduler);
}

void Block::start(const std::function<void()>& body, bool backwards) {
  thread = &body;
  reversed = backwards;
  threads = static_cast<int>(blockDim.count());
  alive = threads;
  trapped = false;
  warps.fill({});
  warpgroups.fill({});
  for (Products& each : products) each = {};
  unfenced = 0;
  barrier = {};
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[static_cast<size_t>(i)];
    fiber.ended = false;
    fiber.waits_for = nullptr;
    fiber.unfenced = false;
    fiber.copies.clear();
    fiber.groups.clear();
    fiber.first_copy = fiber.first_group = fiber.open = 0;
    const auto n = static_cast<unsigned>(i);
    fiber.index = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
    fiber.number = i;
    prepare(fiber.place, stacks + static_cast<size_t>(i) * kStackBytes, kStackBytes, &run_fiber);
  }
}

// Lanes run one after the other up to where they wait, until none of the warp can go on.
bool Block::run_warp(int warp) {
  bool any = false;
  for (bool again = true; again && !trapped;) {
    again = false;
    const int lanes = std::min(32, threads - warp * 32);
    for (int i = 0; i < lanes && !trapped; ++i) {
      Fiber& fiber = fibers[static_cast<size_t>(warp * 32 + (reversed ? lanes - 1 - i : i))];
      if (!fiber.ready()) continue;
      again = any = true;
      current = &fiber;
      threadIdx = fiber.index;
      fiber.waits_for = nullptr;
      go(scheduler, fiber.place);
    }
  }
  return any;
}

void Block::run() {
  const int count = (threads + 31) / 32;
  while (alive > 0 && !trapped) {
    bool any = false;
    for (int w = 0; w < count && !trapped; ++w) any |= run_warp(reversed ? count - 1 - w : w);
    if (!any) {
      const auto waits = std::find_if(fibers.begin(), fibers.begin() + threads,
                                      [](const Fiber& fiber) { return !fiber.ended; });
      current = &*waits;
      threadIdx = waits->index;
      fail("waits for threads that have ended or wait for something else");
    }
  }
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "emulated GPU: block (%u, %u), thread (%u, %u): %s\n", blockIdx.x,
               blockIdx.y, threadIdx.x, threadIdx.y, what);
  std::abort();
}

void trap() {
  the_block->trapped = true;
  go(self().place, the_block->scheduler);
  std::abort();  // nobody comes back
}

int lane_index() {
  return self().number % 32;
}

void meet_warp(unsigned mask, void* mine, Together work) {
  const Fiber& fiber = self();
  const int lane = fiber.number % 32;
  if ((mask >> lane & 1u) == 0) fail("is not among the lanes that it waits for");
  const int lanes = std::min(32, the_block->threads - fiber.number / 32 * 32);
  const unsigned there = lanes == 32 ? mask : mask & ((1u << lanes) - 1);
  meet(the_block->warps[static_cast<size_t>(fiber.number / 32)], lane, std::popcount(there), mine,
       work);
}

void ask_product(void* mine, Gather gather) {
  thread_local Gather last;  // the same for all that come
  last = gather;
  const int number = self().number;
  meet(the_block->warpgroups[static_cast<size_t>(number / 128)], number % 128, 128, mine,
       [](void* const* all) {
         if (the_block->unfenced > 0) {
           fail("asks for products of what was copied and not fenced");
         }
         my_products().waiting.push_back(last(all));
         ++my_products().open;
       });
}

void end_product_group() {
  const int number = self().number;
  meet(the_block->warpgroups[static_cast<size_t>(number / 128)], number % 128, 128, &self(),
       [](void* const*) { my_products().groups.push_back(std::exchange(my_products().open, 0)); });
}

void wait_product_groups(int groups) {
  thread_local int kept;  // the same for all that come
  kept = groups;
  const int number = self().number;
  meet(the_block->warpgroups[static_cast<size_t>(number / 128)], number % 128, 128, &self(),
       [](void* const*) {
         Products& products = my_products();
         while (products.groups.size() > static_cast<size_t>(kept)) {
           for (size_t i = products.groups.front(); i > 0; --i) {
             products.waiting.front()();
             products.waiting.pop_front();
           }
           products.groups.pop_front();
         }
       });
}

void fence_copies() {
  if (std::exchange(self().unfenced, false)) --the_block->unfenced;
}

void sync_block() {
  meet(the_block->barrier, -1, the_block->alive, nullptr, nullptr);
}

#if defined(__x86_64__)
__attribute__((target_clones("avx2", "default")))
#endif
void add_product(float (&d)[16][8], const float (&a)[16][16], const float (&b)[16][8]) {
  for (int row = 0; row < 16; ++row) {
    float sum[8];
    for (int column = 0; column < 8; ++column) sum[column] = d[row][column];
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) sum[column] += a[row][k] * b[k][column];
    }
    for (int column = 0; column < 8; ++column) d[row][column] = sum[column];
  }
}

void ask_copy(const AsyncCopy& copy) {
  self().copies.push_back(copy);
  ++self().open;
}

void end_copy_group() {
  self().groups.push_back(std::exchange(self().open, 0));
}

void wait_copy_groups(int groups) {
  Fiber& fiber = self();
  while (fiber.groups.size() - fiber.first_group > static_cast<size_t>(groups)) {
    for (size_t i = fiber.groups[fiber.first_group++]; i > 0; --i) {
      if (!std::exchange(fiber.unfenced, true)) ++the_block->unfenced;
      const AsyncCopy& copy = fiber.copies[fiber.first_copy++];
      std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
      std::memset(static_cast<std::byte*>(copy.to) + copy.bytes, 0,
                  static_cast<size_t>(copy.size - copy.bytes));
    }
  }
  if (fiber.first_copy == fiber.copies.size()) {
    fiber.copies.clear();
    fiber.first_copy = 0;
  }
  if (fiber.first_group == fiber.groups.size()) {
    fiber.groups.clear();
    fiber.first_group = 0;
  }
}

bool run_grid(dim3 grid, dim3 block, size_t shared, const std::function<void()>& thread) {
  if (the_block == nullptr) the_block = std::make_unique<Block>();
  gridDim = grid;
  blockDim = block;
  uint64_t number = 0;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        std::memset(degu::cuda::dynamic_shared, 0xff, shared);
        the_block->start(thread, number++ % 2 == 1);
        the_block->run();
        if (the_block->trapped) return false;
      }
    }
  }
  return true;
}

}  // namespace emulated
