// Eight threads that wait in eight different ways. With each step a thread checks its own memory,
// thread-local storage and thread id, and writes its memory anew.
//   CHECK  wakes those that wait for somebody, once each: "OK <steps of all>" or "BAD <why>"
#include <linux/futex.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <ctime>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "tests/workloads/support.h"

namespace waft::workloads {
namespace {

constexpr uint16_t kPort = 7000;
constexpr size_t kWords = 32 << 10;  // 256 KiB of its own for each thread
constexpr timespec kPollPause{.tv_sec = 0, .tv_nsec = 1'000'000};
constexpr int kPolls = 10'000;

thread_local uint64_t own_index = 0;

class Worker {
 public:
  // `wait` returns when the thread is to take a step. Without `wake` it does that by itself.
  Worker(std::string name, std::function<void()> wait, std::function<void(pthread_t)> wake)
      : name_(std::move(name)), wait_(std::move(wait)), wake_(std::move(wake)), words_(kWords) {}

  void Start(uint64_t index) {
    thread_ = std::thread([this, index] { Run(index); });
  }
  void Wake() {
    if (!wake_) return;
    wakes_ += 1;
    wake_(thread_.native_handle());
  }

  bool wakes_by_itself() const { return !wake_; }
  uint64_t steps() const { return steps_; }
  uint64_t wakes() const { return wakes_; }
  const char* wrong() const { return wrong_; }
  const std::string& name() const { return name_; }

 private:
  [[noreturn]] void Run(uint64_t index) {
    own_index = index;
    const pid_t tid = ::gettid();
    Write(index, 0);
    for (uint64_t generation = 0;; ++generation) {
      wait_();
      if (own_index != index) wrong_ = "its thread-local storage changed";
      if (::gettid() != tid) wrong_ = "its thread id changed";
      for (size_t i = 0; i < kWords; ++i) {
        if (words_[i] != Pattern(index, generation, i)) wrong_ = "its memory changed";
      }
      Write(index, generation + 1);
      steps_ += 1;
    }
  }

  void Write(uint64_t index, uint64_t generation) {
    for (size_t i = 0; i < kWords; ++i) words_[i] = Pattern(index, generation, i);
  }

  const std::string name_;
  const std::function<void()> wait_;
  const std::function<void(pthread_t)> wake_;
  std::vector<uint64_t> words_;
  std::atomic<uint64_t> steps_ = 0;
  std::atomic<const char*> wrong_ = nullptr;
  uint64_t wakes_ = 0;
  std::thread thread_;
};

using Workers = std::vector<std::unique_ptr<Worker>>;

void ReadByte(int fd) {
  char byte = 0;
  while (::read(fd, &byte, 1) != 1) {
    if (errno != EINTR) Die("read");
  }
}

void WriteByte(int fd) { Must(::write(fd, "x", 1), "write"); }

void AddFutex(Workers& workers) {
  static std::atomic<uint32_t> word = 0;
  const auto wait = [seen = uint32_t{0}]() mutable {
    while (word == seen) ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
    ++seen;
  };
  workers.push_back(std::make_unique<Worker>("futex", wait, [](pthread_t) {
    ++word;
    ::syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }));
}

void AddCondition(Workers& workers) {
  static std::mutex mutex;
  static std::condition_variable condition;
  static int woken = 0;
  const auto wait = [] {
    std::unique_lock lock(mutex);
    condition.wait(lock, [] { return woken > 0; });
    --woken;
  };
  workers.push_back(std::make_unique<Worker>("condition variable", wait, [](pthread_t) {
    const std::lock_guard lock(mutex);
    ++woken;
    condition.notify_one();
  }));
}

void AddEpoll(Workers& workers) {
  const int event = static_cast<int>(Must(::eventfd(0, EFD_SEMAPHORE), "eventfd"));
  const int epoll = static_cast<int>(Must(::epoll_create1(0), "epoll_create1"));
  epoll_event interest{.events = EPOLLIN, .data = {.u64 = 4711}};
  Must(::epoll_ctl(epoll, EPOLL_CTL_ADD, event, &interest), "epoll_ctl");
  const auto wait = [=] {
    epoll_event ready{};
    while (::epoll_wait(epoll, &ready, 1, -1) != 1) {
      if (errno != EINTR) Die("epoll_wait");
    }
    if (ready.data.u64 != 4711) Die("epoll_wait gave another's data");
    eventfd_t one = 0;
    Must(::eventfd_read(event, &one), "eventfd_read");
  };
  workers.push_back(std::make_unique<Worker>(
      "epoll", wait, [event](pthread_t) { Must(::eventfd_write(event, 1), "eventfd_write"); }));
}

void AddPipe(Workers& workers) {
  std::array<int, 2> ends{};
  Must(::pipe(ends.data()), "pipe");
  workers.push_back(std::make_unique<Worker>(
      "pipe", [ends] { ReadByte(ends[0]); }, [ends](pthread_t) { WriteByte(ends[1]); }));
}

void AddSocket(Workers& workers) {
  std::array<int, 2> ends{};
  Must(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()), "socketpair");
  const auto wait = [ends] {
    char byte = 0;
    while (::recv(ends[0], &byte, 1, 0) != 1) {
      if (errno != EINTR) Die("recv");
    }
  };
  workers.push_back(
      std::make_unique<Worker>("socket", wait, [ends](pthread_t) { WriteByte(ends[1]); }));
}

// SIGUSR1 is blocked in all threads and sent to this one.
void AddSignal(Workers& workers) {
  static sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  if (::pthread_sigmask(SIG_BLOCK, &set, nullptr) != 0) Die("pthread_sigmask");
  const auto wait = [] {
    while (::sigwaitinfo(&set, nullptr) != SIGUSR1) {
      if (errno != EINTR) Die("sigwaitinfo");
    }
  };
  workers.push_back(std::make_unique<Worker>(
      "signal", wait, [](pthread_t thread) { ::pthread_kill(thread, SIGUSR1); }));
}

void AddSleep(Workers& workers) {
  constexpr timespec kPause{.tv_sec = 0, .tv_nsec = 10'000'000};
  workers.push_back(
      std::make_unique<Worker>("nanosleep", [=] { ::nanosleep(&kPause, nullptr); }, nullptr));
}

// In registers for tens of ms at a time, so that it is most likely interrupted there.
void AddBusyLoop(Workers& workers) {
  const auto calculate = [] {
    double real = 0.5;
    uint64_t whole = 1;
    for (int i = 0; i < 10'000'000; ++i) {
      real = 3.99 * real * (1 - real);
      whole = whole * 6364136223846793005 + 1442695040888963407;
    }
    return std::pair(real, whole);
  };
  workers.push_back(std::make_unique<Worker>(
      "busy loop",
      [=, expected = calculate()] {
        if (calculate() != expected) Die("the busy loop's registers changed");
      },
      nullptr));
}

std::string Check(const Workers& workers) {
  std::vector<uint64_t> before;
  for (const auto& worker : workers) {
    before.push_back(worker->steps());
    worker->Wake();
  }
  uint64_t steps = 0;
  for (size_t i = 0; i < workers.size(); ++i) {
    const Worker& worker = *workers[i];
    for (int poll = 0; worker.steps() == before[i]; ++poll) {
      if (poll == kPolls) return "BAD " + worker.name() + ": does not wake";
      ::nanosleep(&kPollPause, nullptr);
    }
    if (worker.wrong() != nullptr) return "BAD " + worker.name() + ": " + worker.wrong();
    // No wake is lost or comes from nowhere.
    if (!worker.wakes_by_itself() && worker.steps() != worker.wakes()) {
      return "BAD " + worker.name() + ": woke " + std::to_string(worker.steps()) + " times, not " +
             std::to_string(worker.wakes());
    }
    steps += worker.steps();
  }
  return "OK " + std::to_string(steps);
}

}  // namespace
}  // namespace waft::workloads

int main() {
  using namespace waft::workloads;  // NOLINT(google-build-using-namespace)
  Workers workers;
  for (const auto add :
       {AddFutex, AddCondition, AddEpoll, AddPipe, AddSocket, AddSignal, AddSleep, AddBusyLoop}) {
    add(workers);
  }
  for (size_t i = 0; i < workers.size(); ++i) workers[i]->Start(i + 1);
  ServeLines(kPort, [&workers](const std::string& request) {
    return request == "CHECK" ? Check(workers) : "BAD request";
  });
}
