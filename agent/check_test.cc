#include "agent/check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "criu/criu.h"

namespace waft::agent {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

const Feature kPresent{"there", true, true, "version 1", "everything"};
const Feature kMissing{"missing", false, true, "none", "all that matters"};
const Feature kLost{"optional", false, false, "too old", "some speed"};

TEST(CheckTest, OnlyARequiredFeatureIsInTheWay) {
  EXPECT_TRUE(IsMigrationPossible({}));
  EXPECT_TRUE(IsMigrationPossible({kPresent}));
  EXPECT_TRUE(IsMigrationPossible({kPresent, kLost}));
  EXPECT_FALSE(IsMigrationPossible({kPresent, kMissing}));
  EXPECT_FALSE(IsMigrationPossible({kMissing, kLost, kPresent}));
}

TEST(CheckTest, TheTextHasALineForEachFeatureAndAVerdict) {
  const std::vector<std::string> lines = Lines(FeaturesAsText({kPresent, kMissing, kLost}));
  ASSERT_EQ(lines.size(), 4U);
  EXPECT_THAT(lines[0], AllOf(StartsWith("ok "), HasSubstr(" there "), HasSubstr("version 1"),
                              Not(HasSubstr("everything"))));
  EXPECT_THAT(lines[1], AllOf(StartsWith("MISSING "), HasSubstr("none -> all that matters")));
  EXPECT_THAT(lines[2], AllOf(StartsWith("lost "), HasSubstr("too old -> some speed")));
  EXPECT_EQ(lines[3], "Migration is not possible on this machine.");
  EXPECT_EQ(Lines(FeaturesAsText({kPresent, kLost})).back(),
            "Migration is possible on this machine.");
}

TEST(CheckTest, TheJsonIsOneObjectOfItsSchema) {
  const std::string text = FeaturesAsJson({kPresent, kMissing, kLost});
  EXPECT_EQ(text.back(), '\n');
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  ASSERT_TRUE(json.is_object()) << text;
  EXPECT_EQ(json["schema"], "waft.check/1");
  EXPECT_EQ(json["possible"], false);
  ASSERT_EQ(json["features"].size(), 3U);
  EXPECT_EQ(json["features"][1], (nlohmann::json{{"name", "missing"},
                                                 {"present", false},
                                                 {"required", true},
                                                 {"found", "none"},
                                                 {"lost", "all that matters"}}));
  EXPECT_EQ(nlohmann::json::parse(FeaturesAsJson({kPresent, kLost}))["possible"], true);
}

TEST(CheckTest, NoFeaturesAreAnEmptyArray) {
  EXPECT_EQ(nlohmann::json::parse(FeaturesAsJson({}))["features"], nlohmann::json::array());
}

TEST(CheckTest, WhatAToolSaidNeedNotBeUtf8) {
  Feature odd = kMissing;
  odd.found = "Error: caf\xe9 \xff";
  const nlohmann::json json = nlohmann::json::parse(FeaturesAsJson({odd}), nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_THAT(json["features"][0]["found"].get<std::string>(), StartsWith("Error: caf"));
}

TEST(CheckTest, WordsOfSeveralLinesStayOnOne) {
  Feature wordy = kMissing;
  wordy.found = "criu check: exit code 1: Error (a)\nError (b)\n";
  EXPECT_EQ(Lines(FeaturesAsText({wordy})).size(), 2U) << FeaturesAsText({wordy});
}

TEST(CheckMachineTest, LooksAtEverythingOnce) {
  const std::vector<Feature> features = CheckMachine();
  std::set<std::string> names;
  for (const Feature& feature : features) {
    EXPECT_TRUE(names.insert(feature.name).second) << feature.name;
    EXPECT_FALSE(feature.found.empty()) << feature.name;
    EXPECT_FALSE(feature.lost.empty()) << feature.name;
  }
  EXPECT_THAT(names, testing::IsSupersetOf({"kernel", "criu", "criu check", "runc",
                                            "cgroup freezer", "CAP_SYS_ADMIN", "userfaultfd"}));
  EXPECT_EQ(Lines(FeaturesAsText(features)).size(), features.size() + 1);
  const nlohmann::json json = nlohmann::json::parse(FeaturesAsJson(features));
  EXPECT_EQ(json["features"].size(), features.size());
  EXPECT_EQ(json["possible"], IsMigrationPossible(features));
}

TEST(CheckMachineTest, AMissingCriuIsMissed) {
  ::setenv("WAFT_CRIU", "/nowhere/criu", 1);
  const std::vector<Feature> features = CheckMachine();
  ::unsetenv("WAFT_CRIU");
  EXPECT_FALSE(IsMigrationPossible(features));
  const auto criu = std::find_if(features.begin(), features.end(),
                                 [](const Feature& feature) { return feature.name == "criu"; });
  ASSERT_NE(criu, features.end());
  EXPECT_FALSE(criu->present);
  EXPECT_TRUE(criu->required);
  EXPECT_THAT(criu->found, HasSubstr("/nowhere/criu"));
}

TEST(CheckMachineTest, ACriuThatWorksIsFound) {
  const auto version = criu::Version();
  if (::geteuid() != 0 || !version) GTEST_SKIP() << "no CRIU here, or not root";
  const std::vector<Feature> features = CheckMachine();
  EXPECT_THAT(features, Contains(testing::AllOf(
                            testing::Field(&Feature::name, "criu"),
                            testing::Field(&Feature::present, criu::VersionIsEnough(*version)),
                            testing::Field(&Feature::found, StartsWith(*version)))));
}

}  // namespace
}  // namespace waft::agent
