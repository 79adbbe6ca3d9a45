#include "migration/journal.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/file.h"

namespace waft::migration {
namespace {

namespace fs = std::filesystem;
using enum State;
using testing::AnyOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

v1::JournalRecord::Begin Begin(const std::string& id, Role role) {
  v1::JournalRecord::Begin begin;
  begin.set_migration_id(id);
  begin.set_role(std::string(ToString(role)));
  begin.set_workload("web");
  begin.set_bundle("/srv/web");
  begin.set_peer("b:7420");
  begin.set_freezer("/sys/fs/cgroup/freezer/web");
  begin.mutable_network()->set_path("/run/netns/web");
  begin.set_directory("/run/waft/migrations/" + id);
  return begin;
}

class JournalTest : public testing::Test {
 protected:
  JournalTest() {
    std::string name = (fs::temp_directory_path() / "waft-journal-XXXXXX").string();
    directory_ = ::mkdtemp(name.data());
  }
  ~JournalTest() override {
    ::umount2((directory_ / "full").c_str(), MNT_DETACH);
    EXPECT_TRUE(base::RemoveTree(directory_));
  }

  std::unique_ptr<Journal> Make(const std::string& id, Role role,
                                const std::vector<State>& states = {}) const {
    auto journal = Journal::Create(directory_, Begin(id, role));
    EXPECT_TRUE(journal) << journal.error().message();
    for (const State state : states) EXPECT_TRUE((*journal)->Advance(state, "on the way"));
    return journal ? std::move(*journal) : nullptr;
  }
  fs::path PathOf(const std::string& id, Role role = Role::kSource) const {
    return Journal::PathOf(directory_, id, role);
  }
  static void Overwrite(const fs::path& path, std::string_view bytes) {
    const auto fd = base::Open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ASSERT_TRUE(fd);
    ASSERT_TRUE(base::WriteAll(fd->get(), bytes));
  }

  fs::path directory_;
};

TEST_F(JournalTest, GoesRoundTrip) {
  const int64_t before_ns = base::RealtimeNs();
  {
    const auto journal = Make("m1", Role::kSource, {kFrozen, kPrepared});
    ASSERT_TRUE(journal->Advance(kInDoubt, "lost b: no route"));
    EXPECT_EQ(journal->state(), kInDoubt);
  }
  const auto journal = Journal::Open(PathOf("m1"));
  ASSERT_TRUE(journal) << journal.error().message();
  EXPECT_EQ((*journal)->state(), kInDoubt);
  EXPECT_EQ((*journal)->role(), Role::kSource);
  EXPECT_EQ((*journal)->begin().SerializeAsString(),
            Begin("m1", Role::kSource).SerializeAsString());
  EXPECT_EQ((*journal)->First().state(), "offered");
  EXPECT_EQ((*journal)->Last().detail(), "lost b: no route");
  EXPECT_EQ((*journal)->Find(kFrozen)->detail(), "on the way");
  EXPECT_FALSE((*journal)->Find(kCommitted));
  EXPECT_GE((*journal)->First().realtime_ns(), before_ns);
  EXPECT_GE((*journal)->Last().realtime_ns(), (*journal)->First().realtime_ns());
  EXPECT_LE((*journal)->Last().realtime_ns(), base::RealtimeNs());

  ASSERT_TRUE((*journal)->Advance(kCommitted));
  EXPECT_EQ(Journal::Open(PathOf("m1")).value()->state(), kCommitted);
}

TEST_F(JournalTest, TheTimesOfACommitAreKept) {
  {
    const auto journal = Make("m1", Role::kDestination, {kRestoring, kReady});
    v1::JournalRecord record;
    record.set_restore_started_ns(11);
    record.set_ready_ns(12);
    ASSERT_TRUE(journal->Advance(record, kCommitted));
    ASSERT_TRUE(journal->Advance(kFinished));
  }
  const auto journal = Journal::Open(PathOf("m1", Role::kDestination));
  ASSERT_TRUE(journal);
  const auto committed = (*journal)->Find(kCommitted);
  ASSERT_TRUE(committed);
  EXPECT_EQ(committed->restore_started_ns(), 11);
  EXPECT_EQ(committed->ready_ns(), 12);
}

TEST_F(JournalTest, AStepThatIsNotInTheTableChangesNothing) {
  const auto journal = Make("m1", Role::kSource, {kFrozen});
  const std::string before = base::ReadFile(PathOf("m1")).value();
  for (const State to : {kOffered, kFrozen, kInDoubt, kRestoring, kReady, kCommitted, kFinished}) {
    const base::Status refused = journal->Advance(to);
    ASSERT_FALSE(refused) << ToString(to);
    EXPECT_EQ(refused.error().code(), base::ErrorCode::kFatal);
    EXPECT_THAT(refused.error().message(), HasSubstr("from frozen to"));
  }
  EXPECT_EQ(journal->state(), kFrozen);
  EXPECT_EQ(base::ReadFile(PathOf("m1")).value(), before);
  EXPECT_TRUE(journal->Advance(kPrepared));
}

TEST_F(JournalTest, TheRoleDecidesWhichStepsThereAre) {
  const auto destination = Make("m1", Role::kDestination);
  EXPECT_FALSE(destination->Advance(kFrozen));
  EXPECT_TRUE(destination->Advance(kRestoring));
  // Both sides on one host: two journals of one id.
  const auto source = Make("m1", Role::kSource);
  EXPECT_FALSE(source->Advance(kRestoring));
}

TEST_F(JournalTest, AnIdIsGivenOnce) {
  Make("m1", Role::kSource, {kFrozen});
  EXPECT_FALSE(Journal::Create(directory_, Begin("m1", Role::kSource)));
  EXPECT_EQ(Journal::Open(PathOf("m1")).value()->state(), kFrozen);
}

TEST_F(JournalTest, OnlyOneOfManyCreatorsWins) {
  std::atomic<int> winners = 0;
  std::vector<std::thread> threads;
  threads.reserve(8);
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      if (Journal::Create(directory_, Begin("m1", Role::kDestination))) ++winners;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(winners, 1);
  EXPECT_TRUE(Journal::Open(PathOf("m1", Role::kDestination)));
}

TEST_F(JournalTest, ATornTailIsPassedOverAndReplacedAtEveryLength) {
  Make("m1", Role::kSource, {kFrozen});
  const size_t good = base::ReadFile(PathOf("m1")).value().size();
  ASSERT_TRUE(Journal::Open(PathOf("m1")).value()->Advance(kPrepared, "a record to be torn"));
  const std::string whole = base::ReadFile(PathOf("m1")).value();
  ASSERT_GT(whole.size(), good + 8);
  for (size_t length = good; length < whole.size(); ++length) {
    // Cut off there, or all zeros from there, as a file system may leave it.
    for (const std::string& tail :
         {std::string(), std::string(whole.size() - length, '\0'), std::string(4096, '\0')}) {
      Overwrite(PathOf("m1"), whole.substr(0, length) + tail);
      const auto journal = Journal::Open(PathOf("m1"));
      ASSERT_TRUE(journal) << length << ": " << journal.error().message();
      ASSERT_EQ((*journal)->state(), kFrozen) << length;
      // A shorter record than the torn one, so that some of that would be left.
      ASSERT_TRUE((*journal)->Advance(kAborted)) << length;
      const auto again = Journal::Open(PathOf("m1"));
      ASSERT_TRUE(again);
      ASSERT_EQ((*again)->state(), kAborted) << length;
      ASSERT_TRUE((*again)->Advance(kFinished)) << length;
      ASSERT_EQ(Journal::Open(PathOf("m1")).value()->state(), kFinished) << length;
    }
  }
}

TEST_F(JournalTest, ATornFirstRecordIsNoJournal) {
  Make("m1", Role::kSource);
  const std::string whole = base::ReadFile(PathOf("m1")).value();
  for (size_t length = 0; length < whole.size(); ++length) {
    Overwrite(PathOf("m1"), whole.substr(0, length));
    const auto journal = Journal::Open(PathOf("m1"));
    ASSERT_FALSE(journal) << length;
    EXPECT_EQ(journal.error().code(), base::ErrorCode::kDataLoss);
  }
  EXPECT_THAT(Journal::OpenAll(directory_), IsEmpty());
}

TEST_F(JournalTest, AFlippedBitNeverMakesALaterStateAnEarlierOne) {
  Make("m1", Role::kSource, {kFrozen, kPrepared});
  const size_t before_last = base::ReadFile(PathOf("m1")).value().size();
  ASSERT_TRUE(Journal::Open(PathOf("m1")).value()->Advance(kInDoubt, "lost b"));
  const std::string whole = base::ReadFile(PathOf("m1")).value();
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string flipped = whole;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    Overwrite(PathOf("m1"), flipped);
    const auto journal = Journal::Open(PathOf("m1"));
    if (bit / 8 >= before_last) {
      // In the last record it cannot be told from a torn one.
      ASSERT_TRUE(journal) << bit << ": " << journal.error().message();
      ASSERT_EQ((*journal)->state(), kPrepared) << bit;
    } else {
      // Before it, it must not be taken for one: a source back in `frozen` would abort alone.
      ASSERT_FALSE(journal) << "bit " << bit << " gives " << ToString((*journal)->state());
      ASSERT_EQ(journal.error().code(), base::ErrorCode::kDataLoss);
    }
  }
}

TEST_F(JournalTest, GarbageIsNoJournal) {
  for (const std::string& bytes :
       {std::string(100, '\xff'), std::string(100, '\0'), std::string("\x05\0\0\0", 4)}) {
    Overwrite(PathOf("m1"), bytes);
    EXPECT_FALSE(Journal::Open(PathOf("m1")));
  }
  EXPECT_FALSE(Journal::Open(directory_));
  EXPECT_FALSE(Journal::Open(directory_ / "none"));
}

TEST_F(JournalTest, ADetailThatIsNoUtf8IsKeptReadable) {
  // CRIU's words name files, and a file's name is any bytes; protobuf would not read them back.
  {
    const auto journal = Make("m1", Role::kDestination, {kRestoring});
    ASSERT_TRUE(journal->Advance(kAborted, "Can't open \xc3\x28 \xff/x"));
    ASSERT_TRUE(journal->Advance(kFinished));
  }
  const auto journal = Journal::Open(PathOf("m1", Role::kDestination));
  ASSERT_TRUE(journal) << journal.error().message();
  EXPECT_EQ((*journal)->state(), kFinished);
  EXPECT_THAT((*journal)->Find(kAborted)->detail(), HasSubstr("Can't open "));
}

TEST_F(JournalTest, OpenAllTakesWhatCanBeRead) {
  Make("m1", Role::kSource, {kFrozen});
  Make("m2", Role::kDestination);
  Overwrite(directory_ / "m3.source", "garbage");
  fs::create_directory(directory_ / "m4.source");
  std::vector<std::string> ids;
  for (const auto& journal : Journal::OpenAll(directory_)) {
    ids.push_back(journal->begin().migration_id());
  }
  EXPECT_THAT(ids, testing::UnorderedElementsAre("m1", "m2"));
  EXPECT_EQ(base::ReadFile(directory_ / "m3.source").value(), "garbage");
  EXPECT_THAT(Journal::OpenAll(directory_ / "none"), IsEmpty());
}

// A disk with room for a few records, in a mount namespace of the test's own.
class FullDiskTest : public JournalTest {
 protected:
  void SetUp() override {
    if (::unshare(CLONE_NEWNS) != 0) GTEST_SKIP() << "a tiny disk needs CAP_SYS_ADMIN";
    ASSERT_EQ(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    disk_ = directory_ / "full";
    fs::create_directory(disk_);
    ASSERT_EQ(::mount("test", disk_.c_str(), "tmpfs", 0, "size=16k"), 0);
  }

  // Takes all the room there is, but for what a journal's pages have left.
  void Fill() const {
    const auto fd = base::Open(disk_ / "filler", O_WRONLY | O_CREAT, 0600);
    ASSERT_TRUE(fd);
    const std::string page(4096, 'x');
    while (::write(fd->get(), page.data(), page.size()) > 0) {
    }
    ASSERT_EQ(errno, ENOSPC);
  }
  void MakeRoom() const { fs::remove(disk_ / "filler"); }

  fs::path disk_;
};

TEST_F(FullDiskTest, AStepThatFindsNoRoomIsNotTaken) {
  auto journal = Journal::Create(disk_, Begin("m1", Role::kSource));
  ASSERT_TRUE(journal);
  const fs::path path = Journal::PathOf(disk_, "m1", Role::kSource);
  ASSERT_TRUE((*journal)->Advance(kFrozen));
  Fill();
  // More than is left of the file's last page.
  const base::Status full = (*journal)->Advance(kAborted, std::string(6000, 'd'));
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().error_number(), ENOSPC);
  EXPECT_EQ((*journal)->state(), kFrozen);
  EXPECT_EQ(Journal::Open(path).value()->state(), kFrozen) << "what is on disk says otherwise";

  // A smaller step fits where the torn one was.
  EXPECT_TRUE((*journal)->Advance(kPrepared));
  EXPECT_EQ(Journal::Open(path).value()->state(), kPrepared);
  EXPECT_FALSE((*journal)->Advance(kAborted, std::string(6000, 'd')));
  MakeRoom();
  EXPECT_TRUE((*journal)->Advance(kAborted, std::string(6000, 'd')));
  EXPECT_EQ(Journal::Open(path).value()->state(), kAborted);
}

TEST_F(FullDiskTest, AJournalThatCannotBeBegunLeavesItsIdFree) {
  Fill();
  EXPECT_FALSE(Journal::Create(disk_, Begin("m1", Role::kDestination)));
  MakeRoom();
  const auto journal = Journal::Create(disk_, Begin("m1", Role::kDestination));
  ASSERT_TRUE(journal) << journal.error().message();
  EXPECT_TRUE((*journal)->Advance(kAborted));
}

TEST_F(JournalTest, AReaderBesideAWriterSeesAStateThatWasAndDamagesNothing) {
  constexpr int kJournals = 40;
  std::atomic<bool> done = false;
  std::atomic<int> reads = 0;
  std::thread reader([&] {
    while (!done) {
      for (const auto& journal : Journal::OpenAll(directory_)) {
        ++reads;
        EXPECT_EQ(journal->begin().workload(), "web");
        EXPECT_THAT(journal->state(),
                    AnyOf(kOffered, kFrozen, kPrepared, kInDoubt, kCommitted, kFinished));
      }
    }
  });
  Make("m0", Role::kSource);
  while (reads == 0) ::usleep(1000);  // it is at it
  for (int i = 1; i < kJournals; ++i) {
    Make("m" + std::to_string(i), Role::kSource,
         {kFrozen, kPrepared, kInDoubt, kCommitted, kFinished});
  }
  done = true;
  reader.join();
  const auto journals = Journal::OpenAll(directory_);
  EXPECT_THAT(journals, SizeIs(kJournals));
  for (const auto& journal : journals) {
    EXPECT_EQ(journal->state(), journal->begin().migration_id() == "m0" ? kOffered : kFinished);
  }
}

TEST_F(JournalTest, ManyThreadsTakeAStepOnce) {
  const auto journal = Make("m1", Role::kSource);
  std::atomic<int> taken = 0;
  std::vector<std::thread> threads;
  threads.reserve(8);
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      if (journal->Advance(kFrozen)) ++taken;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(taken, 1);
  EXPECT_EQ(Journal::Open(PathOf("m1")).value()->state(), kFrozen);
}

}  // namespace
}  // namespace waft::migration
