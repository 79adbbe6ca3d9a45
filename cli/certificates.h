#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

// The certificates that waftds know each other by: one authority, and for each host a key pair
// signed by it, good for serving and for calling. Everything blocks on files only. Keys are EC
// P-256 and, once written, never overwritten.
namespace waft::cli {

struct CertificateHost {
  std::string name;                    // a DNS name; also the name of the files
  std::vector<std::string> addresses;  // IPv4 or IPv6
};

// Parses "NAME=ADDRESS[,ADDRESS...]".
base::Result<CertificateHost> ParseCertificateHost(std::string_view text);

struct CertificateOptions {
  std::filesystem::path directory;
  std::vector<CertificateHost> hosts;
  int days = 825;      // of the hosts' certificates; the authority's is valid for ten years
  bool renew = false;  // sign anew, for the same keys, what is there already
};

// One certificate of the directory, after InitCertificates().
struct CertificateState {
  std::string name;    // of the host, or "ca"
  bool made = false;   // false: it was there and fits
  std::string expiry;  // "2027-03-01"
};

// Makes ca.crt and ca.key in the directory unless they are there, and NAME.crt and NAME.key for
// each host. What exists is kept if it fits (this authority, these names and addresses, not
// expired), and is an error that says what to do if it does not. Returns the authority first.
base::Result<std::vector<CertificateState>> InitCertificates(const CertificateOptions& options);

}  // namespace waft::cli
