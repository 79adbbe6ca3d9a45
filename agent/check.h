#pragma once

#include <string>
#include <vector>

namespace waft::agent {

// One thing this machine has or lacks.
struct Feature {
  std::string name;
  bool present = false;
  bool required = false;  // without it no migration is possible
  std::string found;      // a version, a path, or what went wrong
  std::string lost;       // what is lost without it
};

// Looks at kernel, CRIU, runc, cgroups, capabilities and devices; runs `criu check`, a second or
// two.
std::vector<Feature> CheckMachine();

bool IsMigrationPossible(const std::vector<Feature>& features);

// A line for each feature, for a person; or one JSON object, schema "waft.check/1".
std::string FeaturesAsText(const std::vector<Feature>& features);
std::string FeaturesAsJson(const std::vector<Feature>& features);

}  // namespace waft::agent
