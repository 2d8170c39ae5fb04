#include "core/mapped_files.h"

#if defined(_WIN32)

namespace qh {

int watch_mapping(uintptr_t, uint64_t) noexcept { return 0; }
void unwatch_mapping(int) noexcept {}
bool mapping_is_lost(int) noexcept { return false; }
uint64_t lost_mappings() noexcept { return 0; }

}  // namespace qh

#else

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <mutex>

namespace qh {
namespace {

// Twice as many as the shards of the largest checkpoint and its pack, for two models.
constexpr int kSlots = 4096;

enum class State : int { unused, taken, watched };

// Read by a signal handler on any thread: atomics alone.
struct Slot {
  std::atomic<State> state{State::unused};
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> lost{false};
};

static_assert(std::atomic<uintptr_t>::is_always_lock_free);
static_assert(std::atomic<State>::is_always_lock_free);

Slot slots[kSlots];
std::atomic<uint64_t> lost_count{0};
uintptr_t page_bytes = 4096;
struct sigaction previous;
std::once_flag installed_once;
bool installed = false;

// A file that was cut short lacks everything behind its end, so all of it is replaced at once: page
// by page, a large file would run into the system's limit of mappings.
bool replace_by_zeros(const Slot& slot, uintptr_t address) noexcept {
  const uintptr_t page = address / page_bytes * page_bytes;
  const uintptr_t end = slot.end.load(std::memory_order_relaxed);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): the address comes from the kernel.
  void* const place = reinterpret_cast<void*>(page);
  return mmap(place, end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
         MAP_FAILED;
}

void hand_on(int number, siginfo_t* info, void* context) noexcept {
  if ((previous.sa_flags & SA_SIGINFO) != 0 && previous.sa_sigaction != nullptr) {
    previous.sa_sigaction(number, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(number);
  } else {
    // Returning repeats the access, which now ends the process as if nobody had listened.
    struct sigaction usual = {};
    usual.sa_handler = SIG_DFL;
    sigaction(number, &usual, nullptr);
  }
}

void on_bus_error(int number, siginfo_t* info, void* context) {
  const int saved = errno;
  const uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Slot& slot : slots) {
    if (slot.state.load(std::memory_order_acquire) != State::watched) continue;
    if (address < slot.begin.load(std::memory_order_relaxed)) continue;
    if (address >= slot.end.load(std::memory_order_relaxed)) continue;
    slot.lost.store(true, std::memory_order_relaxed);
    lost_count.fetch_add(1, std::memory_order_release);
    if (!replace_by_zeros(slot, address)) break;
    errno = saved;
    return;
  }
  hand_on(number, info, context);
  errno = saved;
}

void install() noexcept {
  const long size = sysconf(_SC_PAGESIZE);
  if (size > 0) page_bytes = static_cast<uintptr_t>(size);
  struct sigaction action = {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  installed =
      sigaction(SIGBUS, nullptr, &previous) == 0 && sigaction(SIGBUS, &action, nullptr) == 0;
}

}  // namespace

int watch_mapping(uintptr_t begin, uint64_t nbytes) noexcept {
  std::call_once(installed_once, install);
  if (!installed) return -1;
  for (int number = 0; number < kSlots; ++number) {
    Slot& slot = slots[number];
    State expected = State::unused;
    if (!slot.state.compare_exchange_strong(expected, State::taken)) continue;
    // The kernel maps whole pages: what the last one holds behind the file is zeros already.
    const uintptr_t end = begin + static_cast<uintptr_t>(nbytes);
    slot.begin.store(begin, std::memory_order_relaxed);
    slot.end.store((end + page_bytes - 1) / page_bytes * page_bytes, std::memory_order_relaxed);
    slot.lost.store(false, std::memory_order_relaxed);
    slot.state.store(State::watched, std::memory_order_release);
    return number;
  }
  return -1;
}

void unwatch_mapping(int number) noexcept {
  if (number < 0 || number >= kSlots) return;
  slots[number].state.store(State::unused, std::memory_order_release);
}

bool mapping_is_lost(int number) noexcept {
  if (number < 0 || number >= kSlots) return false;
  return slots[number].lost.load(std::memory_order_relaxed);
}

uint64_t lost_mappings() noexcept { return lost_count.load(std::memory_order_acquire); }

}  // namespace qh

#endif
