#pragma once

#include <cstdint>
#include <functional>
#include <string>

// What the test workloads share. They are linked statically, hold everything for granted that has
// nothing to do with being moved, and end with a message when that is wrong.
namespace waft::workloads {

[[noreturn]] void Die(const std::string& what);

// Ends the program unless a system call's result is >= 0; returns it otherwise.
long Must(long result, const char* what);

// A word that tells where it belongs: a page of another owner, time or place doesn't pass for it.
constexpr uint64_t Pattern(uint64_t owner, uint64_t generation, uint64_t index) {
  uint64_t word = owner * 0x9e3779b97f4a7c15 ^ generation * 0xc2b2ae3d27d4eb4f ^ index;
  word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9;
  return word ^ (word >> 31);
}

// `length` bytes of such words.
std::string PatternBytes(uint64_t owner, uint64_t generation, size_t length);

// Serves TCP on `port` for good, single-threaded, with connections that stay open. A request is one
// line, and so is what `answer` makes of it. PING is answered here: "OK n", counting from 1.
[[noreturn]] void ServeLines(uint16_t port,
                             const std::function<std::string(const std::string&)>& answer);

}  // namespace waft::workloads
