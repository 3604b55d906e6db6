#include "server/access.h"

#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <fstream>

#include "base/error.h"
#include "io/sha256.h"

namespace degu {
namespace {

bool equal_digests(const std::string& a, const std::string& b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]);
  }
  return difference == 0;
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

}  // namespace

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) digests_.push_back(sha256_of(key));
}

bool ApiKeys::accept(std::string_view authorization) const {
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() < kScheme.size() ||
      lower(authorization.substr(0, kScheme.size())) != kScheme) {
    return false;
  }
  const std::string digest = sha256_of(authorization.substr(kScheme.size()));
  unsigned found = 0;
  for (const std::string& each : digests_) found |= equal_digests(digest, each) ? 1u : 0u;
  return found != 0;
}

void check_api_key(const std::string& key, const std::string& place) {
  constexpr size_t kLeast = 16;
  if (key.size() < kLeast) {
    throw DataError("{}: an API key has {} characters; use at least {}", place, key.size(), kLeast);
  }
  for (unsigned char c : key) {
    if (c <= ' ' || c >= 127) {
      throw DataError(
          "{}: an API key holds a character that is no visible ASCII; use letters, "
          "digits and marks",
          place);
    }
  }
}

std::vector<std::string> read_api_keys(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw IoError("{}: cannot be read; --api-keys takes a file with a key per line", path);
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0 && (status.st_mode & (S_IRGRP | S_IROTH)) != 0) {
    throw IoError("{}: others may read these API keys; chmod 600 it", path);
  }
  std::vector<std::string> keys;
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() || line.front() == '#') continue;
    check_api_key(line, fmt::format("{}:{}", path, number));
    keys.push_back(line);
  }
  if (keys.empty()) throw DataError("{}: there is no API key here; write one per line", path);
  return keys;
}

bool is_loopback(const std::string& host) {
  // A name may begin with "127." too; an address has digits and dots alone.
  const bool address = host.find_first_not_of("0123456789.") == std::string::npos;
  return host == "localhost" || host == "::1" || (address && host.starts_with("127."));
}

bool host_allowed(std::string_view host_header, const std::vector<std::string>& further) {
  std::string name = lower(host_header);
  if (name.starts_with('[')) {
    const size_t end = name.find(']');
    name = end == std::string::npos ? name : name.substr(1, end - 1);
  } else if (const size_t colon = name.rfind(':'); colon != std::string::npos) {
    name.resize(colon);
  }
  if (name.empty() || is_loopback(name) || name.ends_with(".localhost")) return true;
  return std::any_of(further.begin(), further.end(),
                     [&](const std::string& each) { return lower(each) == name; });
}

}  // namespace degu
