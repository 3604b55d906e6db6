#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "data/prepare.h"

namespace degu {
namespace {

namespace fs = std::filesystem;

bool is_hidden(const fs::path& path) {
  return path.filename().string().starts_with('.');
}

// Regular files below `folder`, in byte order of their paths.
std::vector<std::string> files_below(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  fs::recursive_directory_iterator it(folder, error), end;
  for (; !error && it != end; it.increment(error)) {
    if (is_hidden(it->path())) {
      if (it->is_directory(error)) it.disable_recursion_pending();
      continue;
    }
    if (it->is_regular_file(error)) files.push_back(it->path().string());
  }
  if (error) throw IoError("{}: cannot list: {}", folder, error.message());
  std::sort(files.begin(), files.end());
  return files;
}

// "corpus/python.jsonl.gz" → "python"; other characters than a name may have become '_'.
std::string name_of(fs::path path) {
  if (!path.has_filename()) path = path.parent_path();  // "folder/"
  std::string name = fs::is_directory(path)
                         ? path.filename().string()
                         : path.filename().string().substr(0, path.filename().string().find('.'));
  for (char& c : name) {
    if (!valid_domain_name(std::string(1, c)) && c != '-' && c != '.') c = '_';
  }
  return valid_domain_name(name) ? name : "text";
}

}  // namespace

std::vector<SourceSpec> expand_inputs(const std::vector<SourceSpec>& inputs) {
  std::vector<SourceSpec> out;
  for (const SourceSpec& input : inputs) {
    std::error_code error;
    if (fs::is_directory(input.path, error)) {
      const auto files = files_below(input.path);
      if (files.empty()) throw IoError("{}: no files in this folder", input.path);
      for (const std::string& file : files) out.push_back({input.domain, file});
    } else if (fs::exists(input.path, error)) {
      out.push_back(input);
    } else {
      throw IoError("{}: no such file or folder", input.path);
    }
  }
  return out;
}

std::vector<SourceSpec> domains_of_path(const std::string& path) {
  std::error_code error;
  if (!fs::exists(path, error)) throw IoError("{}: no such file or folder", path);
  std::vector<std::string> folders;
  int64_t loose = 0;
  if (fs::is_directory(path, error)) {
    for (const auto& entry : fs::directory_iterator(path, error)) {
      if (is_hidden(entry.path())) continue;
      if (entry.is_directory()) {
        folders.push_back(entry.path().string());
      } else {
        ++loose;
      }
    }
  }
  if (folders.empty()) return {{name_of(path), path}};
  std::sort(folders.begin(), folders.end());
  std::vector<SourceSpec> out;
  for (const std::string& folder : folders) {
    if (files_below(folder).empty()) continue;
    out.push_back({name_of(folder), folder});
  }
  if (loose > 0) {
    log_info("{}: its {} folders are the domains; {} files beside them are not read", path,
             out.size(), loose);
  }
  return out;
}

}  // namespace degu
