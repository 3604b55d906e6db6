// Who may ask: API keys, names of this machine, pages of other origins.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace degu {

// Whether `header` is "Bearer KEY" with one of the keys. Takes the same time whichever byte
// differs: digests are compared, all of them, to the end.
class ApiKeys {
 public:
  explicit ApiKeys(const std::vector<std::string>& keys);
  bool required() const { return !digests_.empty(); }
  bool accept(std::string_view authorization) const;

 private:
  std::vector<std::string> digests_;
};

// One key per line; empty lines and those that begin with '#' do not count. IoError when the file
// cannot be read or others than its owner may read it, DataError for a key with spaces or fewer
// than 16 characters.
std::vector<std::string> read_api_keys(const std::string& path);
void check_api_key(const std::string& key, const std::string& place);

bool is_loopback(const std::string& host);
// A server on a loopback address is asked for by a loopback name; another name in the Host header
// means that a foreign page had its own name resolved to this machine (DNS rebinding).
bool host_allowed(std::string_view host_header, const std::vector<std::string>& further);

}  // namespace degu
