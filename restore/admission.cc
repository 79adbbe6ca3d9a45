#include "restore/admission.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/file.h"
#include "base/proc.h"
#include "criu/criu.h"

namespace waft::restore {
namespace {

uint64_t Mib(uint64_t bytes) { return (bytes >> 20) + (bytes % (1 << 20) != 0 ? 1 : 0); }

std::string FileObjection(const v1::FileFact& file) {
  struct stat info{};
  if (::stat(file.path().c_str(), &info) != 0) {
    return fmt::format("{} is missing here: put it there as it is at the source", file.path());
  }
  if (info.st_mode != file.mode()) {
    return fmt::format("{} differs: mode {:o} here, {:o} at the source", file.path(), info.st_mode,
                       file.mode());
  }
  if (!S_ISREG(info.st_mode)) return "";
  const base::Result<std::string> digest = base::Sha256File(file.path());
  if (!digest) return fmt::format("{} cannot be read: {}", file.path(), digest.error().message());
  if (*digest != file.sha256()) {
    return fmt::format("{} differs in content (sha256 {:.12}.. here, {:.12}.. at the source)",
                       file.path(), *digest, file.sha256());
  }
  return "";
}

}  // namespace

base::Result<v1::HostFacts> OwnFacts() {
  utsname name{};
  if (::uname(&name) != 0) return base::FailErrno("uname");
  WAFT_ASSIGN(std::string criu_version, criu::Version());
  WAFT_ASSIGN(std::string cpuinfo, criu::CpuinfoImage());
  v1::HostFacts facts;
  facts.set_kernel(name.release);
  facts.set_architecture(name.machine);
  facts.set_criu_version(std::move(criu_version));
  facts.set_cpuinfo_image(std::move(cpuinfo));
  facts.set_page_size(static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)));
  return facts;
}

std::vector<std::string> FactObjections(const v1::HostFacts& source) {
  std::vector<std::string> objections;
  utsname name{};
  ::uname(&name);
  if (source.architecture() != name.machine) {
    objections.push_back(
        fmt::format("this host is {}, the source {}", name.machine, source.architecture()));
    return objections;
  }
  if (source.page_size() != static_cast<uint64_t>(::sysconf(_SC_PAGESIZE))) {
    objections.emplace_back("the two hosts have different page sizes");
  }
  const base::Result<std::string> version = criu::Version();
  if (!version) {
    objections.push_back(fmt::format("no working CRIU here: {}", version.error().message()));
    return objections;
  }
  if (!criu::VersionIsEnough(*version)) {
    objections.push_back(
        fmt::format("CRIU here is {}, waft needs 4.2: run scripts/setup", *version));
  }
  if (const base::Status check = criu::Check(); !check) {
    objections.push_back(check.error().message());
  }
  if (const base::Status cpu = criu::CheckCpuinfo(source.cpuinfo_image()); !cpu) {
    objections.push_back(
        fmt::format("this CPU lacks what the source's has: {}", cpu.error().message()));
  }
  return objections;
}

std::vector<std::string> FileObjections(const v1::WorkloadSpec& workload) {
  std::vector<std::string> objections;
  for (const v1::FileFact& file : workload.files()) {
    if (std::string objection = FileObjection(file); !objection.empty()) {
      objections.push_back(std::move(objection));
    }
  }
  return objections;
}

std::vector<std::string> RoomObjections(const v1::WorkloadSpec& workload,
                                        uint64_t image_room_bytes) {
  std::vector<std::string> objections;
  if (workload.image_bytes() > image_room_bytes) {
    objections.push_back(fmt::format(
        "the image set may take {} MiB, this host gives {} MiB (waftd --image-room-mib)",
        Mib(workload.image_bytes()), Mib(image_room_bytes)));
  }
  const base::Result<uint64_t> available = base::AvailableMemoryBytes();
  if (!available) {
    objections.push_back(available.error().message());
    return objections;
  }
  // Not by their sum, which a peer can make overflow.
  if (workload.memory_bytes() > *available ||
      workload.image_bytes() > *available - workload.memory_bytes()) {
    objections.push_back(
        fmt::format("needs {} MiB of memory for its tasks and {} for its images, {} "
                    "MiB are available here",
                    Mib(workload.memory_bytes()), Mib(workload.image_bytes()), Mib(*available)));
  }
  return objections;
}

}  // namespace waft::restore
